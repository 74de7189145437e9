//! Why a connection is closed: what the other side is told.

use quinn::{Connection, ConnectionError, VarInt};

/// A reason, with a code and a sentence for whoever is on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// Nothing is wrong.
    Done,
    /// The node stops.
    Stopping,
    /// The certificate is not for this.
    Role(&'static str),
    /// The first frame did not come in time or was something else.
    NoHello,
    /// A frame was not understood.
    Malformed,
    /// The protocol's version is not spoken here.
    Version,
    /// The other node belongs to another cluster, or has the name of this one.
    Stranger,
    /// A newer connection of the same peer takes this one's place.
    Superseded,
    /// Replies are not read.
    TooSlow,
    /// As many clients are connected as may be.
    TooMany,
}

impl Closing {
    fn code(self) -> u32 {
        match self {
            Closing::Done => 0,
            Closing::Stopping => 1,
            Closing::Role(_) => 2,
            Closing::NoHello => 3,
            Closing::Malformed => 4,
            Closing::Version => 5,
            Closing::Stranger => 6,
            Closing::Superseded => 7,
            Closing::TooSlow => 8,
            Closing::TooMany => 9,
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Closing::Done => "done",
            Closing::Stopping => "the node is stopping",
            Closing::Role(sentence) => sentence,
            Closing::NoHello => "the first frame must be a hello, within five seconds",
            Closing::Malformed => "a frame was not understood",
            Closing::Version => "this version of the protocol is not spoken here",
            Closing::Stranger => "the node belongs to another cluster, or claims this node's id",
            Closing::Superseded => "a newer connection takes this one's place",
            Closing::TooSlow => "replies are not read: too many bytes wait to be sent",
            Closing::TooMany => "too many clients are connected (limits.client_connections_max)",
        }
    }

    /// Whether the other side has closed a connection because it stops.
    pub(crate) fn is_goodbye(connection: &Connection) -> bool {
        let stopping = VarInt::from_u32(Closing::Stopping.code());
        matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(close)) if close.error_code == stopping)
    }

    /// Closes a connection for this reason.
    pub(crate) fn close(self, connection: &Connection) {
        connection.close(VarInt::from_u32(self.code()), self.sentence().as_bytes());
    }
}
