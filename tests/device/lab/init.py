"""The phone's init: hands adbd (argv[1:]) the control socket of the authorisation dialog, and starts adbd again whenever it ends, as Android does. Runs inside the sandbox."""

import os
import signal
import socket
import subprocess
import sys
import time

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Android hangs up on shells; under nohup this one and all its children would never hear it
dialog = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
dialog.bind("/dev/socket/adbd")
os.environ["ANDROID_SOCKET_adbd"] = str(dialog.fileno())  # noqa: SIM112
while True:
    subprocess.run(sys.argv[1:], pass_fds=(dialog.fileno(),), check=False)
    time.sleep(0.2)
