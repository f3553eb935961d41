"""Phones over adb: find one, talk to it, say what it is. Imports errors, progress and this folder; adb-shell inside functions.

``open_connection("adb:SERIAL", progress)`` gives a Connection (connection.py) over one of three links: TCP, USB, or a running adb server.
"""

from stages.devices.adb.connection import Connection, Result
from stages.devices.adb.discovery import Found, find, open_connection
from stages.devices.adb.facts import facts, identity

__all__ = ["Connection", "Found", "Result", "facts", "find", "identity", "open_connection"]
