//! Roles: what a certificate allows its bearer.

use std::{collections::BTreeSet, fmt, str::FromStr};

use ring::name_is_valid;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const NODE: &str = "quorate:node";

/// The role in a certificate: a URI among its subject alternative names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// `quorate:node`: a member, on the protocol of nodes.
    Node,
    /// `quorate:client/read`, `quorate:client/write`, `quorate:client/admin`: a client.
    Client(Grant),
}

/// What a client's certificate allows, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What the client may do.
    pub access: Access,
    /// The names of the keyspaces whose keys it may read or write; none if all of them. What shows the cluster as a whole it
    /// may see in any case. Stands in the role after the access: `quorate:client/write/carts,orders`.
    pub keyspaces: Option<BTreeSet<String>>,
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
#[error(
    "`{0}` is no role: quorate:node, quorate:client/read, quorate:client/write or quorate:client/admin; reading and writing \
     may be bound to keyspaces, as in quorate:client/write/carts,orders"
)]
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

impl Role {
    /// A client that is bound to no keyspace.
    #[must_use]
    pub const fn client(access: Access) -> Role {
        Role::Client(Grant { access, keyspaces: None })
    }
}

impl Grant {
    /// Whether it can stand in a certificate: names are names of keyspaces, there is one at least, and what changes the
    /// cluster as a whole is bound to none.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.keyspaces.as_ref().is_none_or(|keyspaces| {
            self.access < Access::Admin
                && !keyspaces.is_empty()
                && keyspaces.iter().all(|keyspace| name_is_valid(keyspace))
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Node => f.write_str(NODE),
            Role::Client(grant) => grant.fmt(f),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.access.role_name())?;
        for (index, keyspace) in self.keyspaces.iter().flatten().enumerate() {
            write!(f, "{}{keyspace}", if index == 0 { '/' } else { ',' })?;
        }
        Ok(())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Role, UnknownRole> {
        if name == NODE {
            return Ok(Role::Node);
        }
        let accesses = [Access::Read, Access::Write, Access::Admin];
        let grant = accesses.into_iter().find_map(|access| {
            let keyspaces = match name.strip_prefix(access.role_name())? {
                "" => None,
                bound => Some(bound.strip_prefix('/')?.split(',').map(str::to_owned).collect()),
            };
            Some(Grant { access, keyspaces })
        });
        match grant.filter(Grant::is_valid) {
            Some(grant) => Ok(Role::Client(grant)),
            None => Err(UnknownRole(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_read_as_they_are_written() {
        let bound = |access, keyspaces: &[&str]| {
            let keyspaces = Some(keyspaces.iter().map(|name| (*name).to_owned()).collect());
            Role::Client(Grant { access, keyspaces })
        };
        for (name, role) in [
            ("quorate:node", Role::Node),
            ("quorate:client/read", Role::client(Access::Read)),
            ("quorate:client/admin", Role::client(Access::Admin)),
            ("quorate:client/read/carts", bound(Access::Read, &["carts"])),
            ("quorate:client/write/carts,orders.v2", bound(Access::Write, &["carts", "orders.v2"])),
        ] {
            assert_eq!(name.parse(), Ok(role.clone()));
            assert_eq!(role.to_string(), name);
        }
    }

    #[test]
    fn what_is_nearly_a_role_is_none() {
        for name in [
            "quorate:nodes",
            "quorate:node/carts",
            "quorate:client",
            "quorate:client/",
            "quorate:client/writer",
            "quorate:client/write/",
            "quorate:client/write/carts,",
            "quorate:client/write/,carts",
            "quorate:client/write//carts",
            "quorate:client/write/carts/orders",
            "quorate:client/write/ca rts",
            "quorate:client/admin/carts",
            "Quorate:client/write",
        ] {
            assert_eq!(name.parse::<Role>(), Err(UnknownRole(name.to_owned())));
        }
    }
}
