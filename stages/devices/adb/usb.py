"""adb-shell's transport over USB (npas[usb]), its libusb errors turned into those of a socket. Imports errors and this folder; adb-shell and libusb inside functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.devices.adb.link import CONNECT_SECONDS
from stages.errors import DeviceNotFound

ADB = ["ff", "42", "01"]  # class, subclass and protocol of adb's USB interface
EXTRA = "For phones on USB without an adb server: pip install 'npas[usb]'. With one ('adb start-server'), npas goes through it."


def usb_transport() -> Any:
    """The class of the transport; ``find_all_adb_devices()`` yields one per phone. DeviceNotFound where npas[usb] isn't installed."""
    try:
        import usb1
        from adb_shell.transport.usb_transport import UsbTransport
    except (ImportError, OSError) as error:  # OSError: the Python package is there, libusb itself isn't
        raise DeviceNotFound("This installation of npas can't talk to USB itself.", EXTRA) from error

    class Transport(UsbTransport):
        """UsbTransport that raises what the link layer understands: OSError, TimeoutError, or an NpasError that says what to do."""

        def connect(self, transport_timeout_s: float | None = None) -> None:
            try:
                super().connect(transport_timeout_s)
            except usb1.USBErrorBusy as error:  # adb_shell issues 213 and 225
                raise DeviceNotFound("Another program holds the phone's USB interface.", "If that is an adb server, start it on its usual port: npas goes through it. Else end the program.") from error
            except usb1.USBErrorAccess as error:
                raise DeviceNotFound("You may not open the phone's USB device.", "On Linux: apt-get install android-sdk-platform-tools-common (udev rules), join the group plugdev, plug in again.") from error
            except usb1.USBError as error:
                raise ConnectionResetError(str(error)) from error

        def bulk_read(self, numbytes: int, transport_timeout_s: float | None = None) -> bytes:
            return bytes(self._checked("bulk_read", numbytes, transport_timeout_s))

        def bulk_write(self, data: bytes, transport_timeout_s: float | None = None) -> int:
            return int(self._checked("bulk_write", data, transport_timeout_s))

        def _checked(self, method: str, *arguments: Any) -> Any:
            from adb_shell.exceptions import UsbReadFailedError, UsbWriteFailedError

            try:
                return getattr(super(), method)(*arguments)
            except (UsbReadFailedError, UsbWriteFailedError) as error:
                slow = isinstance(error.__context__, usb1.USBErrorTimeout)
                raise TimeoutError(str(error)) if slow else ConnectionResetError(str(error)) from error

    return Transport


def usb_serials(sysfs: Path = Path("/sys/bus/usb/devices")) -> dict[str, str]:
    """Serial -> state of the phones on USB: "" where npas[usb] can open them, else what is needed (seen in Linux's ``sysfs`` only)."""
    try:
        return {phone.serial_number: "" for phone in usb_transport().find_all_adb_devices()}
    except DeviceNotFound:
        found = [path.parent for path in sysfs.glob("*/bInterfaceClass") if [_read(path.with_name(f"bInterface{name}")) for name in ("Class", "SubClass", "Protocol")] == ADB]
        return {_read(sysfs / interface.name.partition(":")[0] / "serial"): "needs an adb server or npas[usb]" for interface in found}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def find_usb(serial: str) -> Any:
    """An unconnected transport to the phone with that serial. DeviceNotFound."""
    from adb_shell.exceptions import UsbDeviceNotFoundError

    try:
        return usb_transport().find_adb(serial, default_transport_timeout_s=CONNECT_SECONDS)
    except UsbDeviceNotFoundError as error:
        raise DeviceNotFound(f"There is no phone {serial} on USB.", "Plug it in and turn on USB debugging; 'npas devices' lists what is there.") from error
