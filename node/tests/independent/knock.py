"""Knocks at a node with another QUIC and TLS implementation than the node's own, aioquic.

  knock.py PORT CA ALPN CERTIFICATE|- KEY|- BYTES FRAMES

Opens a stream, says the bytes (hexadecimal) and listens until so many frames have been answered or the connection ends; with 0,
until it ends. Prints one JSON object: what was answered, and how the connection ended if it did.
"""

import asyncio
import json
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived

# The name that the certificates of all nodes share.
SERVER_NAME = "node.quorate"
# For a machine that has much else to do.
PATIENCE_SECONDS = 20.0


class Knock(QuicConnectionProtocol):
    """Keeps what the node says."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.answer = b""
        self.end = None
        self.frames_wanted = 0
        self.is_enough = asyncio.Event()

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            self.answer += event.data
            if 0 < self.frames_wanted <= frames(self.answer):
                self.is_enough.set()
        elif isinstance(event, ConnectionTerminated):
            self.end = {"code": event.error_code, "reason": event.reason_phrase}
            self.is_enough.set()


def frames(answer):
    """How many frames are whole: each has its length before it, in four bytes."""
    count = 0
    while len(answer) >= 4 and len(answer) >= 4 + (length := int.from_bytes(answer[:4])):
        answer = answer[4 + length :]
        count += 1
    return count


async def knock(port, ca, alpn, certificate, key, said, frames_wanted):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=[alpn], server_name=SERVER_NAME)
    configuration.load_verify_locations(ca)
    if certificate != "-":
        configuration.load_cert_chain(certificate, key)
    async with connect("127.0.0.1", port, configuration=configuration, create_protocol=Knock, wait_connected=False) as node:
        try:
            node.transmit()
            # In TLS 1.3 this says nothing of what the node thinks of the certificate.
            await asyncio.wait_for(node.wait_connected(), PATIENCE_SECONDS)
            stream = node._quic.get_next_available_stream_id()
            node.frames_wanted = frames_wanted
            node._quic.send_stream_data(stream, said)
            node.transmit()
            await asyncio.wait_for(node.is_enough.wait(), PATIENCE_SECONDS)
        except (ConnectionError, TimeoutError):
            pass
        return {"answer": node.answer.hex(), "end": node.end}


if __name__ == "__main__":
    port, ca, alpn, certificate, key, said, wanted = sys.argv[1:]
    print(json.dumps(asyncio.run(knock(int(port), ca, alpn, certificate, key, bytes.fromhex(said), int(wanted)))))
