"""A volume through the six calls, shown step by step: ``python -m demo``, or ``make demo``.

The shipped daemon and a real initiator do the work; what is here calls the socket as any client would, and checks.

    __main__    the command: options, signals, exit code
    story       what happens, in order, and what must be true after each step
    stage       the temporary daemon, its target and its volume, from their start until nothing is left of them
    initiators  QEMU's own initiator, or the kernel's through open-iscsi
    screen      how it is shown
"""
