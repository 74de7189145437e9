//! `cert`: an authority, and certificates for nodes and clients.

use std::fmt::Write as _;

use client::{
    Grant, Role,
    certificates::{Authority, Request},
};
use serde::Serialize;

use crate::{
    arguments::{Cert, Issue},
    failure::{CommandError, Exit},
    output::Output,
};

/// What every `cert` command prints: the files that it wrote.
#[derive(Serialize)]
struct FilesDocument {
    certificate: String,
    key: String,
    role: Option<String>,
}

/// Makes or issues. Nothing is asked of a cluster.
pub(crate) fn run(command: Cert, output: &Output) -> Result<Exit, CommandError> {
    match command {
        Cert::Init { dir } => {
            Authority::create(&dir)?;
            let file = |name: &str| dir.join(name).display().to_string();
            let files = FilesDocument { certificate: file("ca.pem"), key: file("ca-key.pem"), role: None };
            print(&files, "the key issues certificates: keep it safe, and off the nodes", output)
        }
        Cert::Node { name, host, issue } => {
            self::issue(Request { role: Role::Node, name, hosts: host, days: issue.days }, &issue, output)
        }
        Cert::Client { name, role, keyspaces, issue } => {
            let keyspaces = (!keyspaces.is_empty()).then(|| keyspaces.into_iter().collect());
            let role = Role::Client(Grant { access: role.into(), keyspaces });
            self::issue(Request { role, name, hosts: Vec::new(), days: issue.days }, &issue, output)
        }
    }
}

fn issue(request: Request, issue: &Issue, output: &Output) -> Result<Exit, CommandError> {
    let issued = Authority::open(&issue.dir)?.issue(&request)?;
    let files = if issue.replace {
        issued.replace(&issue.dir, &request.name)?
    } else {
        issued.write(&issue.dir, &request.name)?
    };
    let role = request.role.to_string();
    let remark = format!("{role}, for {} days", request.days);
    let files = FilesDocument {
        certificate: files.certificate.display().to_string(),
        key: files.key.display().to_string(),
        role: Some(role),
    };
    print(&files, &remark, output)
}

fn print(files: &FilesDocument, remark: &str, output: &Output) -> Result<Exit, CommandError> {
    output.print(files, |text| {
        let _ = writeln!(text, "wrote {} and {}\n{remark}", files.certificate, files.key);
    })?;
    Ok(Exit::Done)
}
