"""Connections that nobody uses, from a process of their own: ``idle_clients.py HOST PORT COUNT``.

A third never says a word, a third was answered once and stays, a third follows the events. It tells on standard output
when it has done what it could, and leaves when its standard input ends.
"""

import socket
import sys

ANSWER_TIMEOUT = 1.0
"""Seconds that a client gives a hive that may have no descriptor left to answer with."""
_REQUESTS = ("", "GET /livez HTTP/1.1\r\nhost: {host}\r\n\r\n", "GET /v1/events HTTP/1.1\r\nhost: {host}\r\n\r\n")


def main() -> None:
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    connections = []
    patience = ANSWER_TIMEOUT
    for number in range(count):
        connection = socket.socket()
        connection.settimeout(ANSWER_TIMEOUT)
        connections.append(connection)
        try:
            connection.connect((host, port))
            if request := _REQUESTS[number % len(_REQUESTS)]:
                connection.sendall(request.format(host=f"{host}:{port}").encode())
                connection.settimeout(patience)
                connection.recv(1)
        except TimeoutError:
            patience = 0.01  # it has none left: those that come now are to wait, and this process is not
        except OSError:
            continue
    sys.stdout.write("connected\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
