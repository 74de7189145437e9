//! `keyspace create`, `list` and `show`.

use std::{collections::BTreeMap, fmt::Write as _};

use client::{
    ControlFailure,
    wire::{ControlError, NewKeyspace},
};
use ring::{ClusterDocument, ConflictPolicy, Durability, Keyspace as Definition, KeyspaceId};
use serde::Serialize;

use crate::{
    arguments::{Global, Keyspace},
    failure::{CommandError, Exit},
    interrupt::Interrupt,
    output::{Output, Table},
    session::Session,
};

/// A keyspace as it is printed.
#[derive(Serialize)]
struct KeyspaceDocument<'a> {
    name: &'a str,
    id: u32,
    replication: BTreeMap<&'a str, u8>,
    conflict: &'static str,
    durability: &'static str,
    /// Of the cluster document that has it.
    epoch: u64,
}

/// What `list` prints.
#[derive(Serialize)]
struct ListDocument<'a> {
    keyspaces: Vec<KeyspaceDocument<'a>>,
}

/// Creates, lists or shows.
pub(crate) async fn run(
    command: Keyspace,
    global: &Global,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    let session = interrupt.may_end(Session::open(global)).await?;
    match command {
        Keyspace::Create { name, replication, conflict, durability } => {
            let new = NewKeyspace {
                name,
                replication: replication.unwrap_or_default(),
                conflict: conflict.into(),
                durability: durability.into(),
            };
            interrupt.may_doubt(create(&session, new, output)).await?;
        }
        Keyspace::List => list(&session.client.document(), output)?,
        Keyspace::Show { name } => {
            let document = session.client.document();
            let Some((id, keyspace)) = document.keyspace_named(&name) else {
                if output.is_json() {
                    output.print(&serde_json::Value::Null, |_| {})?;
                    return Ok(Exit::NotFound);
                }
                return Err(CommandError::NoKeyspaceToShow(name));
            };
            show(&describe(&document, id, keyspace), "keyspace", output)?;
        }
    }
    session.close().await;
    Ok(Exit::Done)
}

async fn create(session: &Session, new: NewKeyspace, output: &Output) -> Result<(), CommandError> {
    session.client.keyspace(&new.name)?;
    let name = new.name.clone();
    match session.client.create_keyspace(new, session.change_timeout()).await {
        Ok(_) => {}
        // It exists. A node that does not know it yet is told by the next that does.
        Err(ControlFailure::Refused(error @ ControlError::NotEverywhere { .. })) => {
            output.aside(&format!("{error}: those that lag take it when they catch up"));
        }
        Err(failure) => return Err(failure.into()),
    }
    let document = session.client.refresh(session.timeout()).await;
    let (id, keyspace) =
        document.keyspace_named(&name).ok_or_else(|| CommandError::NoSuchKeyspace(name.clone()))?;
    show(&describe(&document, id, keyspace), "created keyspace", output)
}

fn list(document: &ClusterDocument, output: &Output) -> Result<(), CommandError> {
    let keyspaces =
        document.keyspaces.iter().map(|(id, keyspace)| describe(document, *id, keyspace)).collect();
    let list = ListDocument { keyspaces };
    output.print(&list, |text| {
        let mut table = Table::new(&["name", "replication", "conflict", "durability"]);
        for keyspace in &list.keyspaces {
            let name = keyspace.name.to_owned();
            table.row([name, replication(keyspace), keyspace.conflict.into(), keyspace.durability.into()]);
        }
        table.write(text);
    })
}

fn show(keyspace: &KeyspaceDocument<'_>, title: &str, output: &Output) -> Result<(), CommandError> {
    output.print(keyspace, |text| {
        let _ = writeln!(text, "{title} {}", keyspace.name);
        let _ = writeln!(text, "  copies      {}", replication(keyspace));
        let _ = writeln!(text, "  conflict    {}", keyspace.conflict);
        let _ = writeln!(text, "  durability  {}", keyspace.durability);
    })
}

fn describe<'a>(
    document: &'a ClusterDocument,
    id: KeyspaceId,
    keyspace: &'a Definition,
) -> KeyspaceDocument<'a> {
    let name = |index: u16| document.datacenters.get(usize::from(index)).map_or("?", |dc| dc.name.as_str());
    KeyspaceDocument {
        name: &keyspace.name,
        id: id.0,
        replication: keyspace.replication.iter().map(|(dc, copies)| (name(dc.0), *copies)).collect(),
        conflict: match keyspace.conflict {
            ConflictPolicy::Siblings => "siblings",
            ConflictPolicy::LastWriteWins => "lww",
        },
        durability: match keyspace.durability {
            Durability::Disk => "disk",
            Durability::Memory => "memory",
        },
        epoch: document.epoch.0,
    }
}

fn replication(keyspace: &KeyspaceDocument<'_>) -> String {
    let parts: Vec<_> = keyspace.replication.iter().map(|(dc, copies)| format!("{dc}={copies}")).collect();
    parts.join(",")
}
