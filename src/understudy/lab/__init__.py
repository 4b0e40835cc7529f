"""A lab on one machine: a tiny real guest and two private libvirt hosts, for `understudy demo` and the system tests."""
