//! Roles: what a certificate allows its bearer.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The role in a certificate: a URI among its subject alternative names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `quorate:node`: a member, on the protocol of nodes.
    Node,
    /// `quorate:client/read`, `quorate:client/write`, `quorate:client/admin`: a client.
    Client(Access),
}

/// What a client may do. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Access {
    /// Gets, and what shows the cluster's state.
    Read,
    /// Puts and deletes.
    Write,
    /// Changes of the cluster.
    Admin,
}

/// Not the name of a role.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no role: quorate:node, quorate:client/read, quorate:client/write or quorate:client/admin")]
pub struct UnknownRole(pub String);

impl Access {
    /// The role that has it, as it stands in a certificate.
    #[must_use]
    pub fn role_name(self) -> &'static str {
        match self {
            Access::Read => "quorate:client/read",
            Access::Write => "quorate:client/write",
            Access::Admin => "quorate:client/admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Node => f.write_str("quorate:node"),
            Role::Client(access) => f.write_str(access.role_name()),
        }
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Role, UnknownRole> {
        match name {
            "quorate:node" => Ok(Role::Node),
            "quorate:client/read" => Ok(Role::Client(Access::Read)),
            "quorate:client/write" => Ok(Role::Client(Access::Write)),
            "quorate:client/admin" => Ok(Role::Client(Access::Admin)),
            other => Err(UnknownRole(other.to_owned())),
        }
    }
}
