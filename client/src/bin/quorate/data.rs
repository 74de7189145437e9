//! `put`, `get` and `delete`.

use std::{
    fmt::Write as _,
    future::Future,
    io::{self, Read},
};

use client::{Found, VALUE_BYTES_MAX, WriteFailure, Written};
use serde::Serialize;

use crate::{
    arguments::{Delete, Get, Global, Put},
    failure::{CommandError, Exit},
    interrupt::Interrupt,
    output::{JsonBytes, Output, ShownVersion, age, escaped, escaped_lines, now_unix_ms, stdout_is_terminal},
    session::Session,
};

/// What `put` and `delete` print.
#[derive(Serialize)]
struct WriteDocument<'a> {
    key: &'a str,
    version: Option<ShownVersion>,
    context: Option<String>,
    required: u8,
    acknowledged: u8,
    stood_in: u8,
    coordinator: u32,
    overlap: bool,
}

/// What `get` prints.
#[derive(Serialize)]
struct GetDocument<'a> {
    key: &'a str,
    found: bool,
    values: Vec<JsonBytes<'a>>,
    versions: Vec<ValueDocument>,
    context: String,
    freshness: FreshnessDocument,
    coordinator: u32,
}

/// What goes with a value, in the order of the values.
#[derive(Serialize)]
struct ValueDocument {
    version: ShownVersion,
    written_unix_ms: u64,
    expires_unix_ms: Option<u64>,
}

#[derive(Serialize)]
struct FreshnessDocument {
    asked: u8,
    answered: u8,
    agreed: bool,
    repaired: u8,
    overlap: bool,
    n: u8,
    r: u8,
    w: u8,
}

/// Stores a value.
pub(crate) async fn put(
    put: Put,
    global: &Global,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    let value = match put.value.as_str() {
        "-" => interrupt.may_end(read_stdin()).await?,
        _ => put.value.into_bytes(),
    };
    let session = interrupt.may_end(Session::open(global)).await?;
    let mut builder =
        session.keyspace()?.put(put.key.clone(), value).timeout(session.timeout()).sloppy(put.write.sloppy);
    if let Some(level) = put.write.w {
        builder = builder.w(level);
    }
    if let Some(n) = put.write.n {
        builder = builder.n(n);
    }
    if let Some(context) = put.context {
        builder = builder.context(context);
    }
    if let Some(durability) = put.durability {
        builder = builder.durability(durability.into());
    }
    if let Some(ttl) = put.ttl {
        builder = builder.ttl(ttl);
    }
    let written = interrupt.may_doubt(send(builder.send(), &session)).await?;
    print_written("stored", &put.key, &written, output)?;
    session.close().await;
    Ok(Exit::Done)
}

/// Deletes a key.
pub(crate) async fn delete(
    delete: Delete,
    global: &Global,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    let session = interrupt.may_end(Session::open(global)).await?;
    let mut builder =
        session.keyspace()?.delete(delete.key.clone()).timeout(session.timeout()).sloppy(delete.write.sloppy);
    if let Some(level) = delete.write.w {
        builder = builder.w(level);
    }
    if let Some(n) = delete.write.n {
        builder = builder.n(n);
    }
    if let Some(context) = delete.context {
        builder = builder.context(context);
    }
    let written = interrupt.may_doubt(send(builder.send(), &session)).await?;
    let did = if written.version.is_some() { "deleted" } else { "there was nothing to delete" };
    print_written(did, &delete.key, &written, output)?;
    session.close().await;
    Ok(Exit::Done)
}

/// Reads a key.
pub(crate) async fn get(get: Get, global: &Global, output: &Output) -> Result<Exit, CommandError> {
    let session = Session::open(global).await?;
    let mut builder = session.keyspace()?.get(get.key.clone()).timeout(session.timeout());
    if let Some(level) = get.r {
        builder = builder.r(level);
    }
    if let Some(n) = get.n {
        builder = builder.n(n);
    }
    if let Some(read_repair) = get.read_repair {
        builder = builder.read_repair(read_repair.into());
    }
    let found =
        builder.send().await.map_err(|failure| CommandError::read(failure, session.keyspace_name()))?;
    session.close().await;
    if get.raw && found.values.len() > 1 {
        return Err(CommandError::SeveralValues(found.values.len()));
    }
    if output.is_json() {
        output.print(&document(&get.key, &found), |_| {})?;
    } else {
        print_found(&found, get.raw, output)?;
    }
    Ok(if found.values.is_empty() { Exit::NotFound } else { Exit::Done })
}

async fn send(
    write: impl Future<Output = Result<Written, WriteFailure>>,
    session: &Session,
) -> Result<Written, CommandError> {
    write.await.map_err(|failure| CommandError::write(failure, session.keyspace_name()))
}

fn print_written(did: &str, key: &str, written: &Written, output: &Output) -> Result<(), CommandError> {
    let document = WriteDocument {
        key,
        version: written.version.map(ShownVersion),
        context: written.context.as_ref().map(ToString::to_string),
        required: written.required,
        acknowledged: written.acknowledged,
        stood_in: written.stood_in,
        coordinator: written.coordinator.0,
        overlap: written.overlap.is_sure,
    };
    output.print(&document, |text| {
        let (acknowledged, n) = (written.acknowledged - written.stood_in, written.overlap.n);
        let stood_in = match written.stood_in {
            0 => String::new(),
            1 => ", and 1 node that stands in until another is back: reads may miss it".to_owned(),
            more => format!(", and {more} nodes that stand in until others are back: reads may miss it"),
        };
        let _ = writeln!(text, "{did}: {acknowledged} of {n} replicas{stood_in}");
        if let Some(version) = document.version {
            let _ = writeln!(text, "version {version}");
        }
        match &document.context {
            Some(context) if !context.is_empty() => {
                let _ = writeln!(text, "context {context}");
            }
            None if written.version.is_some() => {
                let _ = writeln!(text, "other values stand beside it: get the key to see them");
            }
            Some(_) | None => {}
        }
    })
}

fn document<'a>(key: &'a str, found: &'a Found) -> GetDocument<'a> {
    let (freshness, overlap) = (&found.freshness, &found.overlap);
    GetDocument {
        key,
        found: !found.values.is_empty(),
        values: found.values.iter().map(|value| JsonBytes(&value.bytes)).collect(),
        versions: found
            .values
            .iter()
            .map(|value| ValueDocument {
                version: ShownVersion(value.version),
                written_unix_ms: value.version.counter >> 16,
                expires_unix_ms: value.expires_unix_ms,
            })
            .collect(),
        context: found.context.to_string(),
        freshness: FreshnessDocument {
            asked: freshness.asked,
            answered: freshness.answered,
            agreed: freshness.agreed,
            repaired: freshness.repaired,
            overlap: overlap.is_sure,
            n: overlap.n,
            r: overlap.r,
            w: overlap.w,
        },
        coordinator: found.coordinator.0,
    }
}

/// Prints the values on stdout, and beside them, so that a script gets the value alone, what is known of the read.
fn print_found(found: &Found, is_raw: bool, output: &Output) -> Result<(), CommandError> {
    let now_unix_ms = now_unix_ms();
    match found.values.as_slice() {
        [] => output.aside("not found"),
        [value] if is_raw => output.bytes(&value.bytes)?,
        [value] => {
            let mut bytes = match stdout_is_terminal() {
                true => escaped_lines(&value.bytes).into_bytes(),
                false => value.bytes.to_vec(),
            };
            bytes.push(b'\n');
            output.bytes(&bytes)?;
            let (version, age) = (ShownVersion(value.version), age(value.version, now_unix_ms));
            output.aside(&format!("version {version}, written {age}"));
        }
        siblings => {
            let mut text = String::new();
            for value in siblings {
                let (version, age) = (ShownVersion(value.version), age(value.version, now_unix_ms));
                let _ = writeln!(text, "{}  ({version}, written {age})", escaped(&value.bytes));
            }
            output.bytes(text.as_bytes())?;
            let count = siblings.len();
            output.aside(&format!("{count} concurrent values: put one with this --context to resolve them"));
        }
    }
    if !is_raw {
        if !found.context.as_bytes().is_empty() {
            output.aside(&format!("context {}", found.context));
        }
        output.aside(&freshness(found));
    }
    Ok(())
}

/// How fresh a read is, in words.
fn freshness(found: &Found) -> String {
    let (freshness, overlap) = (&found.freshness, &found.overlap);
    let agreed = if freshness.agreed { "and agreed" } else { "and disagreed" };
    let repaired = match freshness.repaired {
        0 => String::new(),
        repaired => format!(", {repaired} mended"),
    };
    let meets = if overlap.is_sure { "meets every" } else { "may miss an" };
    let (sum, n) = (overlap.r + overlap.w, overlap.n);
    format!(
        "{} of {} replicas answered {agreed}{repaired}; r + w = {sum} with n = {n} {meets} acknowledged quorum write",
        freshness.answered, freshness.asked
    )
}

/// All of stdin, unless it is too large.
async fn read_stdin() -> Result<Vec<u8>, CommandError> {
    let read = tokio::task::spawn_blocking(|| {
        let mut value = Vec::new();
        io::stdin().lock().take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value).map(|_| value)
    });
    let value = read.await.expect("reading does not panic").map_err(CommandError::Stdin)?;
    if value.len() > VALUE_BYTES_MAX { Err(CommandError::LongStdin) } else { Ok(value) }
}
