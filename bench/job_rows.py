"""x"""
GROUPS = ()
NAMES = ("job-full",)
