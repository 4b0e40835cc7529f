"""A lab on one machine: tiny real guests on two private libvirt hosts, for `understudy demo` and the system tests.

::

    with Lab.open() as lab:
        vm = lab.create_vm(lab.alpha, "web 1", data_disks=[DataDisk(64 << 20)])
        vm.wait_agent()
        print(vm.run("uname -a"), lab.beta.uri)
"""
