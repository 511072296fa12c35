"""The kernel's configfs: the few file operations that a target is written with."""
