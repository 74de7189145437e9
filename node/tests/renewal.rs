//! Certificates and authorities are exchanged while the nodes run, and no request fails of it.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr, clippy::unwrap_used)]

mod running;
mod settings;

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use client::{
    Access, Client, ClientConfig, ConnectError, KeyspaceHandle, Level, Role,
    certificates::{Authority, Request},
};
use running::{ByHand, Running, eventually, signal};
use tokio::task::LocalSet;

const SOON: Duration = Duration::from_secs(20);
const USED: &str = "quorate_certificate_renewals_total{outcome=\"used\"}";
const REFUSED: &str = "quorate_certificate_renewals_total{outcome=\"refused\"}";
const EXPIRES: &str = "quorate_certificate_expires_timestamp_seconds";
const CA_EXPIRES: &str = "quorate_ca_expires_timestamp_seconds";

/// Issues a certificate, in the place of one of that name if there is one.
fn issue(authority: &Authority, role: Role, days: u32, directory: &Path, stem: &str) -> (PathBuf, PathBuf) {
    let request = Request { role, name: stem.to_owned(), hosts: Vec::new(), days };
    let files = authority.issue(&request).unwrap().replace(directory, stem).unwrap();
    (files.certificate, files.key)
}

/// Waits until a node has used new certificates so many times.
async fn renewed(running: &Running, node: u32, times: f64) {
    let what = format!("node {node} has renewed its certificates {times} times");
    eventually(&what, SOON, || async { running.metric(node, USED) >= Some(times) }).await;
}

/// Has all nodes read their certificates anew, and waits until they have done so as often as that.
async fn renew_all(running: &Running, times: f64) {
    for node in 1..=running.options.nodes {
        signal(running.pid(node), "-HUP");
    }
    for node in 1..=running.options.nodes {
        renewed(running, node, times).await;
    }
}

/// Puts and gets at a quorum until it is told to end. None may fail.
async fn load(keyspace: KeyspaceHandle, is_over: Rc<Cell<bool>>, done: Rc<Cell<u32>>) {
    while !is_over.get() {
        let key = format!("key-{}", done.get());
        let put = keyspace.put(key.clone(), "value").w(Level::Quorum).timeout(SOON);
        // One node is killed in the course of this.
        let put = put.retry_in_doubt(true).send().await;
        put.unwrap_or_else(|error| panic!("put {}: {error}", done.get()));
        let got = keyspace.get(key).r(Level::Quorum).timeout(SOON).send().await;
        assert!(!got.unwrap_or_else(|error| panic!("get {}: {error}", done.get())).values.is_empty());
        done.set(done.get() + 1);
    }
}

async fn exchange() {
    let running = Running::processes(3);
    let directory = running.options.directory.clone();
    let old_ca = fs::read_to_string(directory.join("ca.pem")).unwrap();
    let new = Authority::create(&directory.join("new")).unwrap();
    let ca = |text: &str| fs::write(directory.join("ca.pem"), text).unwrap();
    let client = running.client().await;
    let (is_over, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
    let load = tokio::task::spawn_local(load(
        client.default_keyspace().unwrap(),
        Rc::clone(&is_over),
        Rc::clone(&done),
    ));
    // It knows both authorities from the start: what is tested of it is what nodes think of its certificate.
    let knows_both = directory.join("both.pem");
    fs::write(&knows_both, format!("{old_ca}{}", new.certificate_pem())).unwrap();
    let old_client = ClientConfig { ca: knows_both, ..running.client_config() };
    // The files of the cluster's own client are replaced in the course of this.
    let (certificate, key) = (directory.join("old.pem"), directory.join("old-key.pem"));
    fs::copy(&old_client.certificate, &certificate).unwrap();
    fs::copy(&old_client.key, &key).unwrap();
    let old_client = ClientConfig { certificate, key, ..old_client };
    let (certificate, key) = issue(&new, Role::client(Access::Admin), 5, &directory.join("new"), "client");
    let new_client =
        ClientConfig { certificate, key, connect_timeout: Duration::from_secs(2), ..old_client.clone() };

    // Both are trusted before anybody shows what the new one has issued.
    ca(&format!("{old_ca}{}", new.certificate_pem()));
    renew_all(&running, 1.0).await;
    for node in 1..=3 {
        let expires = running.metric(node, EXPIRES).unwrap();
        issue(&new, Role::Node, 5, &running.options.node_directory(node), "node");
        signal(running.pid(node), "-HUP");
        renewed(&running, node, 2.0).await;
        assert!(
            running.metric(node, EXPIRES).unwrap() < expires,
            "it lives five days, and the old one longer"
        );
    }
    for config in [&old_client, &new_client] {
        let client = Client::connect(config.clone()).await.unwrap();
        client.default_keyspace().unwrap().put("knock", "knock").w(Level::All).send().await.unwrap();
        client.close().await;
    }

    // Nobody shows what the old one has issued any more, so that it can go.
    ca(new.certificate_pem());
    renew_all(&running, 3.0).await;
    for node in 1..=3 {
        let seeds = vec![format!("127.0.0.1:{}", running.options.port(node))];
        let connect_timeout = Duration::from_secs(1);
        let refused = Client::connect(ClientConfig { seeds, connect_timeout, ..old_client.clone() }).await;
        let refused = refused.map(|_| ()).unwrap_err();
        assert!(matches!(refused, ConnectError::Unreachable(_)), "{refused}");
        assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
    }
    let newcomer = Client::connect(new_client.clone()).await.unwrap();
    newcomer.default_keyspace().unwrap().put("knock", "knock").w(Level::All).send().await.unwrap();

    // A node that starts anew finds the others, and they find it, and a client that has read its new certificate, too.
    for (file, of) in [("client.pem", &new_client.certificate), ("client-key.pem", &new_client.key)] {
        fs::copy(of, directory.join(file)).unwrap();
    }
    client.renew_certificates().unwrap();
    running.kill(2);
    let _process = ByHand::run(&running.options.node_config(2));
    eventually("all three take a write", SOON, || async {
        let keyspace = newcomer.default_keyspace().unwrap();
        keyspace.delete("knock").w(Level::All).send().await.is_ok()
    })
    .await;
    let before = done.get();
    eventually("the load goes on", SOON, || async { done.get() > before + 10 }).await;
    is_over.set(true);
    load.await.unwrap();
    // It may have to find out first that its old connection is gone.
    eventually("a new connection, with the new certificate", SOON, || async {
        client.status(ring::NodeId(2), SOON).await.is_ok()
    })
    .await;
    eprintln!("{} puts and gets, and none has failed", done.get());
    client.close().await;
    newcomer.close().await;
}

#[test]
fn an_authority_is_exchanged_under_load_and_no_request_fails() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, exchange());
}

#[tokio::test]
async fn files_that_change_are_used_by_themselves_and_only_if_they_are_good() {
    let running = Running::processes_with(1, "certificate_interval_ms = 100\n");
    let directory = running.options.node_directory(1);
    let authority = Authority::open(&running.options.directory).unwrap();
    let client = running.client().await;
    let serves = async || {
        let newcomer = running.client().await;
        newcomer.default_keyspace().unwrap().delete("key").send().await.unwrap();
        newcomer.close().await;
    };
    let (expires, ca_expires) = (running.metric(1, EXPIRES).unwrap(), running.metric(1, CA_EXPIRES).unwrap());
    assert!(ca_expires > expires);
    assert_eq!((running.metric(1, USED), running.metric(1, REFUSED)), (Some(0.0), Some(0.0)));

    // The certificate alone is not good, and with its key it is.
    let (certificate, key) = issue(&authority, Role::Node, 3, &running.options.directory, "next");
    fs::copy(certificate, directory.join("node.pem")).unwrap();
    eventually("the half is refused", SOON, || async { running.metric(1, REFUSED) > Some(0.0) }).await;
    serves().await;
    assert_eq!(running.metric(1, EXPIRES), Some(expires));
    fs::copy(key, directory.join("node-key.pem")).unwrap();
    renewed(&running, 1, 1.0).await;
    assert!(running.metric(1, EXPIRES).unwrap() < expires);
    serves().await;

    // Nor is what is a client's, another authority's or nonsense.
    let foreign = Authority::create(&running.options.directory.join("foreign")).unwrap();
    let good = ["node.pem", "node-key.pem"].map(|file| fs::read(directory.join(file)).unwrap());
    let mut refused = running.metric(1, REFUSED).unwrap();
    for bad in ["client", "foreign", "nonsense"] {
        match bad {
            "client" => drop(issue(&authority, Role::client(Access::Admin), 3, &directory, "node")),
            "foreign" => drop(issue(&foreign, Role::Node, 3, &directory, "node")),
            _ => fs::write(directory.join("node.pem"), "nonsense").unwrap(),
        }
        signal(running.pid(1), "-HUP");
        eventually(bad, SOON, || async { running.metric(1, REFUSED) > Some(refused) }).await;
        refused = running.metric(1, REFUSED).unwrap();
        serves().await;
    }
    assert_eq!(running.metric(1, USED), Some(1.0));
    for (file, contents) in ["node.pem", "node-key.pem"].into_iter().zip(good) {
        fs::write(directory.join(file), contents).unwrap();
    }
    renewed(&running, 1, 2.0).await;
    client.default_keyspace().unwrap().get("key").send().await.unwrap();
    client.close().await;
}
