"""Knocks at a node with another QUIC and TLS implementation than the node's own, aioquic.

  knock.py PORT CA ALPN CERTIFICATE|- KEY|- BYTES

Opens a stream, says the bytes (hexadecimal) and listens for a second or until the connection ends. Prints one JSON object:
what was answered, and how the connection ended if it did.
"""

import asyncio
import json
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived

# The name that the certificates of all nodes share.
SERVER_NAME = "node.quorate"
LISTEN_SECONDS = 1.0
CONNECT_SECONDS = 5.0


class Knock(QuicConnectionProtocol):
    """Keeps what the node says."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.answer = b""
        self.end = None
        self.has_ended = asyncio.Event()

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            self.answer += event.data
        elif isinstance(event, ConnectionTerminated):
            self.end = {"code": event.error_code, "reason": event.reason_phrase}
            self.has_ended.set()


async def knock(port, ca, alpn, certificate, key, said):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=[alpn], server_name=SERVER_NAME)
    configuration.load_verify_locations(ca)
    if certificate != "-":
        configuration.load_cert_chain(certificate, key)
    async with connect("127.0.0.1", port, configuration=configuration, create_protocol=Knock, wait_connected=False) as node:
        try:
            node.transmit()
            # In TLS 1.3 this says nothing of what the node thinks of the certificate.
            await asyncio.wait_for(node.wait_connected(), CONNECT_SECONDS)
            stream = node._quic.get_next_available_stream_id()
            node._quic.send_stream_data(stream, said)
            node.transmit()
            await asyncio.wait_for(node.has_ended.wait(), LISTEN_SECONDS)
        except (ConnectionError, TimeoutError):
            pass
        return {"answer": node.answer.hex(), "end": node.end}


if __name__ == "__main__":
    port, ca, alpn, certificate, key, said = sys.argv[1:]
    print(json.dumps(asyncio.run(knock(int(port), ca, alpn, certificate, key, bytes.fromhex(said)))))
