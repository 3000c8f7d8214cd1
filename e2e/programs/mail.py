"""SMTP, where the server speaks first: serve PORT | send HOST PORT SUBJECT."""
import sys
import time


def serve(port):
    from aiosmtpd.controller import Controller

    class Print:
        async def handle_DATA(self, server, session, envelope):
            print("received", envelope.content.decode(), flush=True)
            return "250 taken"

    # asyncio makes IPv6 sockets that take no IPv4.
    for host in ("0.0.0.0", "::"):
        Controller(Print(), hostname=host, port=int(port)).start()
    print("serving", flush=True)
    time.sleep(3600)


def send(host, port, subject):
    import smtplib

    try:
        with smtplib.SMTP(host, int(port), timeout=10) as smtp:
            smtp.sendmail("a@example.org", ["b@example.org"], f"Subject: {subject}\r\n\r\nhello\r\n")
        print("sent")
    except (OSError, smtplib.SMTPException) as error:
        print("refused", type(error).__name__)


if __name__ == "__main__":
    {"serve": serve, "send": send}[sys.argv[1]](*sys.argv[2:])
