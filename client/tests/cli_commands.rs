//! The commands of `quorate`, their output and their exit codes.

// In a test a panic is a finding, in its helpers too.
#![allow(clippy::unwrap_used)]

mod fake;

use std::time::{Duration, Instant};

use client::{
    Access, Limit, Refusal,
    wire::{ControlReply, ControlRequest, NodeVitals},
};
use fake::{
    Act, Asked, DEFAULT, FakeCluster, Folder, black_hole,
    cli::{bare, command, finish, interrupt, quorate, with_input},
    doubtful, refuse,
};
use serde_json::{Value, json};

#[tokio::test]
async fn a_value_that_was_put_is_printed_and_a_missing_one_exits_with_1() {
    let cluster = FakeCluster::start(3).await;
    let missing = quorate(&cluster, &["get", "cart"]).await.expect(1);
    assert_eq!(missing.stdout, "");
    let missing = quorate(&cluster, &["get", "cart", "--json"]).await.expect(1).json();
    assert_eq!((&missing["found"], &missing["values"]), (&json!(false), &json!([])));
    quorate(&cluster, &["put", "cart", "a book"]).await.expect(0);
    let found = quorate(&cluster, &["get", "cart"]).await.expect(0);
    assert_eq!(found.stdout, "a book\n");
    assert!(found.stderr.contains("context ") && found.stderr.contains("2 of 2 replicas"), "{found:?}");
    assert_eq!(quorate(&cluster, &["get", "cart", "--raw"]).await.expect(0).stdout, "a book");
    quorate(&cluster, &["delete", "cart"]).await.expect(0);
    quorate(&cluster, &["get", "cart"]).await.expect(1);
}

#[tokio::test]
async fn get_as_json_says_how_fresh_it_is() {
    let cluster = FakeCluster::start(3).await;
    quorate(&cluster, &["put", "cart", "a book"]).await.expect(0);
    let found = quorate(&cluster, &["get", "cart", "--json"]).await.expect(0).json();
    assert_eq!((&found["found"], &found["values"]), (&json!(true), &json!(["a book"])));
    let freshness = json!({
        "asked": 2, "answered": 2, "agreed": true, "repaired": 0, "overlap": true, "n": 3, "r": 2, "w": 2
    });
    assert_eq!(found["freshness"], freshness);
    let found = quorate(&cluster, &["get", "cart", "--json", "--r", "one"]).await.expect(0).json();
    assert_eq!(found["freshness"]["overlap"], json!(false));
}

#[tokio::test]
async fn bytes_that_are_no_text_come_from_stdin_and_are_printed_as_base64() {
    let cluster = FakeCluster::start(1).await;
    let put = command(&cluster, &["put", "key", "-"]);
    with_input(put, b"\xff\x00\n").await.expect(0);
    let found = quorate(&cluster, &["get", "key", "--json"]).await.expect(0).json();
    assert_eq!(found["values"], json!([{"base64": "/wAK"}]));
    let values = cluster.shared.store.lock().unwrap().values(DEFAULT, b"key");
    assert_eq!(values[0].bytes, &b"\xff\x00\n"[..]);
}

#[tokio::test]
async fn siblings_are_shown_each_on_a_line_and_resolved_with_the_context() {
    let cluster = FakeCluster::start(3).await;
    quorate(&cluster, &["put", "cart", "a book"]).await.expect(0);
    let second = quorate(&cluster, &["put", "cart", "a pen", "--json"]).await.expect(0).json();
    assert_eq!(second["context"], Value::Null, "something that its writer had not seen stands beside it");
    let found = quorate(&cluster, &["get", "cart"]).await.expect(0);
    let lines: Vec<_> = found.stdout.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with("a pen  (") && lines[1].starts_with("a book  ("),
        "{found:?}"
    );
    let context = found.stderr.lines().find_map(|line| line.strip_prefix("context ")).unwrap();
    let json = quorate(&cluster, &["get", "cart", "--json"]).await.expect(0).json();
    assert_eq!(json["context"], json!(context));
    let raw = quorate(&cluster, &["get", "cart", "--raw"]).await;
    let raw = raw.expect_error(3, "the key has 2 concurrent values, and --raw prints a single one");
    assert_eq!(raw.stdout, "");
    quorate(&cluster, &["put", "cart", "both", "--context", context]).await.expect(0);
    assert_eq!(quorate(&cluster, &["get", "cart"]).await.expect(0).stdout, "both\n");
}

#[tokio::test]
async fn exit_codes_tell_a_definite_failure_from_a_doubtful_one() {
    let cluster = FakeCluster::start(3).await;
    cluster.script(|asked| refuse(asked, Refusal::Forbidden { needs: Access::Write }));
    quorate(&cluster, &["put", "k", "v"])
        .await
        .expect_error(3, "the certificate's role must be quorate:client/write");
    cluster.script(|asked| refuse(asked, Refusal::Overloaded(Limit::Unsynced)));
    let overloaded = ["put", "k", "v", "--timeout", "300ms"];
    quorate(&cluster, &overloaded).await.expect_error(3, "try again a little later");
    cluster.script(|asked| match asked {
        Asked::Data(_) => doubtful(),
        Asked::Control(_) => Act::Serve,
    });
    quorate(&cluster, &["put", "k", "v"]).await.expect_error(4, "it may have happened, or may yet");
    cluster.script(|asked| match asked {
        Asked::Data(_) => Act::Close,
        Asked::Control(_) => Act::Serve,
    });
    quorate(&cluster, &["delete", "k"]).await.expect_error(4, "in doubt");
    cluster.script(|asked| match asked {
        Asked::Data(_) => Act::Silence,
        Asked::Control(_) => Act::Serve,
    });
    quorate(&cluster, &["get", "k", "--timeout", "300ms"]).await.expect_error(5, "did not answer");
    quorate(&cluster, &["get", "k", "--keyspace", "nope"]).await.expect_error(3, "no such keyspace: `nope`");
}

#[tokio::test]
async fn top_shows_every_member_once_where_there_is_no_terminal() {
    let cluster = FakeCluster::start(3).await;
    let top = ["top", "--interval", "100ms"];
    let shown = quorate(&cluster, &top).await.expect(0);
    assert!(shown.stdout.contains("3 of 3 members up"), "{shown:?}");
    assert_eq!(shown.stdout.lines().filter(|line| line.starts_with("node-")).count(), 3, "{shown:?}");
    assert!(!shown.stdout.contains('\x1b'), "{shown:?}");
    let json = quorate(&cluster, &[&top[..], &["--json"]].concat()).await.expect(0).json();
    assert_eq!(json["members"][2]["reads_per_second"], json!(0.0));
    assert_eq!(json["members"][2]["storage_free"], json!(0.5));
    quorate(&cluster, &["top", "--count", "0"]).await.expect(2);
}

#[tokio::test]
async fn the_doctor_tells_what_is_wrong_from_what_may_be_and_says_what_to_do() {
    let cluster = FakeCluster::start(3).await;
    let well = quorate(&cluster, &["doctor"]).await.expect(0);
    assert!(well.stdout.contains("nothing to complain of"), "{well:?}");
    cluster.script(|asked| match asked {
        Asked::Control(ControlRequest::Vitals) => {
            let vitals = NodeVitals {
                certificate_expires_unix_s: 1,
                certificates_refused: true,
                ..NodeVitals::default()
            };
            Act::Control(Ok(ControlReply::Vitals(Box::new(vitals))))
        }
        _ => Act::Serve,
    });
    let ill = quorate(&cluster, &["doctor"]).await.expect(3);
    assert!(ill.stdout.contains("problem: certificates: node-1: its certificate has expired"), "{ill:?}");
    assert!(ill.stdout.contains("quorate cert node NAME --replace"), "{ill:?}");
    assert!(
        ill.stdout.contains("warning: clocks: node-1, node-2, node-3: its clock and this machine's"),
        "{ill:?}"
    );
    let json = quorate(&cluster, &["doctor", "--json"]).await.expect(3).json();
    assert_eq!(json["findings"][0]["grade"], json!("problem"));
    assert_eq!(json["findings"][0]["subject"], json!("certificates"));
}

#[tokio::test]
async fn a_cluster_that_cannot_be_reached_exits_with_5_in_time() {
    let folder = Folder::new();
    let cluster = FakeCluster::start(1).await;
    let (hole, address) = black_hole();
    let config = cluster.config_file();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&cluster.nodes[0].address.to_string(), &address)).unwrap();
    let mut command = bare(&["get", "k", "--timeout", "400ms"]);
    command.env("QUORATE_CONFIG", &config).current_dir(folder.path());
    let begun = Instant::now();
    with_input(command, b"").await.expect_error(5, &format!("{address}: no answer"));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // Found by itself, it may be of a cluster that does not run.
    for file in std::fs::read_dir(cluster.folder.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    std::fs::copy(&config, folder.path().join("client.toml")).unwrap();
    let mut command = bare(&["get", "k", "--timeout", "400ms"]);
    command.current_dir(folder.path());
    with_input(command, b"").await.expect_error(5, "does the cluster run? `quorated dev` starts one");
    drop(hole);
}

#[tokio::test]
async fn wrong_usage_and_unusable_configurations_exit_with_2() {
    let folder = Folder::new();
    let run = async |arguments: &[&str]| {
        let mut command = bare(arguments);
        command.current_dir(folder.path());
        with_input(command, b"").await
    };
    run(&["frobnicate"]).await.expect(2);
    run(&["get"]).await.expect(2);
    run(&["get", "k", "--r", "most"]).await.expect(2);
    run(&["get", "k", "--timeout", "2"]).await.expect(2);
    run(&["put", "k", "v", "--context", "not a context"]).await.expect(2);
    run(&["put", "k", "v", "--w", "0"]).await.expect(2);
    run(&["put", "k", "v", "--n", "0"]).await.expect(2);
    run(&["delete", "k", "--w", "0"]).await.expect(2);
    run(&["get", "k", "--r", "any"]).await.expect(2);
    run(&["explain", "k", "--n", "0"]).await.expect(2);
    run(&["export", "--r", "any"]).await.expect(2);
    run(&["import", "-", "--key-field", "id", "--w", "0"]).await.expect(2);
    run(&["get", "k"]).await.expect_error(2, "no configuration");
    run(&["get", "k", "--config", "nope.toml"]).await.expect_error(2, "nope.toml");
    std::fs::write(folder.path().join("client.toml"), "seeds = ['x']\ncolor = 1\n").unwrap();
    let faults = run(&["get", "k"]).await.expect_error(2, "`color` is unknown");
    for fault in ["`x`, which is not of the form host:port", "`ca` is missing", "`key` is missing"] {
        assert!(faults.stderr.contains(fault), "{faults:?}");
    }
    run(&["--help"]).await.expect(0);
}

#[tokio::test]
async fn a_configuration_is_found_where_the_development_cluster_puts_it() {
    let cluster = FakeCluster::start(1).await;
    let folder = Folder::new();
    let run = async |arguments: &[&str]| {
        let mut command = bare(arguments);
        command.current_dir(folder.path());
        with_input(command, b"").await
    };
    let dev = folder.path().join("quorate-dev");
    std::fs::create_dir(&dev).unwrap();
    for file in std::fs::read_dir(cluster.folder.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dev.join(file.file_name())).unwrap();
    }
    std::fs::copy(cluster.config_file(), dev.join("client.toml")).unwrap();
    run(&["put", "k", "v"]).await.expect(0);
}

#[tokio::test]
async fn keyspaces_are_created_once_listed_and_shown() {
    let cluster = FakeCluster::start(3).await;
    let create = ["keyspace", "create", "carts", "--replication", "ams=2", "--conflict", "lww", "--json"];
    let created = quorate(&cluster, &create).await.expect(0).json();
    let expected = json!({
        "name": "carts", "id": 3, "replication": {"ams": 2}, "conflict": "lww", "durability": "disk", "epoch": 2
    });
    assert_eq!(created, expected);
    assert_eq!(quorate(&cluster, &create).await.expect(0).json(), expected, "again is as good as once");
    let other = ["keyspace", "create", "carts"];
    quorate(&cluster, &other).await.expect_error(3, "exists and has other properties");
    let nowhere = ["keyspace", "create", "other", "--replication", "ber=2"];
    quorate(&cluster, &nowhere).await.expect_error(3, "no datacenter is called `ber`");
    quorate(&cluster, &["keyspace", "create", "no name"]).await.expect_error(2, "can be no keyspace's name");
    let list = quorate(&cluster, &["keyspace", "list", "--json"]).await.expect(0).json();
    let names: Vec<_> =
        list["keyspaces"].as_array().unwrap().iter().map(|keyspace| &keyspace["name"]).collect();
    assert_eq!(names, ["default", "lww", "carts"]);
    assert_eq!(quorate(&cluster, &["keyspace", "show", "carts", "--json"]).await.expect(0).json(), expected);
    quorate(&cluster, &["keyspace", "show", "nope"]).await.expect_error(1, "no keyspace is called `nope`");
    let nope = quorate(&cluster, &["keyspace", "show", "nope", "--json"]).await.expect(1);
    assert_eq!((nope.json(), nope.stderr.as_str()), (Value::Null, ""));
    quorate(&cluster, &["--keyspace", "carts", "put", "k", "v"]).await.expect(0);
    quorate(&cluster, &["get", "k"]).await.expect(1);
}

#[tokio::test]
async fn status_shows_every_member_and_waits_for_a_dead_one_no_longer_than_it_says() {
    let cluster = FakeCluster::start(3).await;
    cluster.nodes[2].kill();
    let begun = Instant::now();
    let status = quorate(&cluster, &["status", "--json"]).await.expect(0).json();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!((&status["epoch"], &status["partitions"], &status["n"]), (&json!(1), &json!(64), &json!(3)));
    let members = status["members"].as_array().unwrap();
    let states: Vec<_> = members.iter().map(|member| member["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["up", "up", "down"]);
    assert_eq!(members[0]["copies"], json!({"whole": 64, "filling": 0}));
    assert_eq!((&members[0]["ownership"], &members[0]["epoch"]), (&json!(1.0), &json!(1)));
    assert_eq!((&members[2]["epoch"], &members[2]["copies"]), (&Value::Null, &Value::Null));
    assert_eq!(members[2]["reason"], json!("no answer"));
    let text = quorate(&cluster, &["status", "--timeout", "300ms"]).await.expect(0).stdout;
    assert!(text.contains("2 of 3 members up") && text.contains("node-3"), "{text}");
}

#[tokio::test]
async fn the_ring_shows_how_partitions_are_spread() {
    let cluster = FakeCluster::start_in(7, |id| u16::from(id > 4)).await;
    let ring = quorate(&cluster, &["ring", "--json"]).await.expect(0).json();
    assert_eq!(ring["lists"], Value::Null);
    let [ams, fra] = ring["datacenters"].as_array().unwrap().as_slice() else { panic!("{ring}") };
    let nodes = ams["nodes"].as_array().unwrap();
    assert_eq!((&ams["name"], &ams["n"], nodes.len()), (&json!("ams"), &json!(3), 4));
    let replicas: u64 = nodes.iter().map(|node| node["replicas"].as_u64().unwrap()).sum();
    assert_eq!(replicas, 64 * 3);
    assert!(ams["imbalance"].as_f64().unwrap() < 0.05, "{ams}");
    assert_eq!(fra["nodes"][0]["share"], json!(1.0));
    let ring = quorate(&cluster, &["ring", "--json", "--lists"]).await.expect(0).json();
    assert_eq!(ring["lists"].as_array().unwrap().len(), 64 * 2);
    quorate(&cluster, &["ring"]).await.expect(0);
}

#[tokio::test]
async fn explain_asks_every_replica_and_says_why_the_winner_wins() {
    let cluster = FakeCluster::start(5).await;
    quorate(&cluster, &["explain", "cart"]).await.expect(1);
    quorate(&cluster, &["put", "cart", "a book"]).await.expect(0);
    let explained = quorate(&cluster, &["explain", "cart", "--json"]).await.expect(0).json();
    assert_eq!(explained["replicas"].as_array().unwrap().len(), 3);
    let list = explained["preference_list"].as_array().unwrap();
    let replicas = list.iter().filter(|entry| entry["replica"] == json!(true)).count();
    assert_eq!((list.len(), replicas), (5, 3));
    assert_eq!(explained["behind"], json!([]));
    assert!(explained["why"].as_str().unwrap().contains("is the only value"), "{explained}");
    assert_eq!(explained["winner"][0], explained["replicas"][0]["versions"][0]["version"]);
    quorate(&cluster, &["put", "cart", "a pen"]).await.expect(0);
    let text = quorate(&cluster, &["explain", "cart"]).await.expect(0).stdout;
    assert!(text.contains("2 concurrent siblings"), "{text}");
    let all = quorate(&cluster, &["explain", "cart", "--n", "5", "--json"]).await.expect(0).json();
    assert_eq!(all["replicas"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn a_node_is_readmitted_by_its_number_or_its_name() {
    let cluster = FakeCluster::start(2).await;
    let readmitted = quorate(&cluster, &["readmit", "node-2", "--json"]).await.expect(0).json();
    assert_eq!(readmitted, json!({"node": 2, "epoch": 2}));
    quorate(&cluster, &["readmit", "9"]).await.expect_error(3, "node-9 is no member of the cluster");
    quorate(&cluster, &["readmit", "nine"]).await.expect(2);
}

#[tokio::test]
async fn lag_shows_how_far_each_pair_of_nodes_is_in_sync() {
    let cluster = FakeCluster::start(3).await;
    cluster.nodes[2].kill();
    let lag = quorate(&cluster, &["lag", "--json"]).await.expect(0).json();
    assert_eq!(lag["convergence_lag_ms"], json!(0));
    let pairs = lag["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 4, "of the two that answer, each with two peers");
    assert_eq!(
        (&pairs[0]["node"], &pairs[0]["peer"], &pairs[0]["in_sync_ms"]),
        (&json!(1), &json!(2), &json!(40))
    );
    assert_eq!(lag["members"][2]["reason"], json!("no answer"));
    let text = quorate(&cluster, &["lag", "--timeout", "300ms"]).await.expect(0).stdout;
    assert!(text.contains("no write is known to be missing") && text.contains("40ms ago"), "{text}");
    assert!(text.contains("node-3 did not answer"), "{text}");
}

#[tokio::test]
async fn a_repair_waits_until_all_pairs_are_in_sync_and_says_whom_it_could_not_ask() {
    let cluster = FakeCluster::start(3).await;
    let done = quorate(&cluster, &["repair", "--wait", "--json"]).await.expect(0).json();
    assert_eq!((&done["pairs"], &done["in_sync"], &done["unreachable"]), (&json!(3), &json!(3), &json!([])));
    let begun = quorate(&cluster, &["repair", "--partition", "5", "--json"]).await.expect(0).json();
    assert_eq!(begun["in_sync"], Value::Null);
    quorate(&cluster, &["repair", "--partition", "64"]).await.expect_error(3, "no partition 64");
    quorate(&cluster, &["repair", "--keyspace", "nope"]).await.expect_error(3, "no such keyspace");
    cluster.nodes[2].kill();
    let text = quorate(&cluster, &["repair", "--wait", "--timeout", "300ms"]).await.expect(3).stdout;
    assert!(text.contains("1 pair of nodes is in sync") && text.contains("node-3 did not answer"), "{text}");
}

#[tokio::test]
async fn certificates_are_made_without_a_cluster_and_work() {
    let folder = Folder::new();
    let run = async |arguments: &[&str]| {
        let mut command = bare(arguments);
        command.current_dir(folder.path());
        with_input(command, b"").await
    };
    run(&["cert", "init", "--dir", "certs"]).await.expect(0);
    run(&["cert", "init", "--dir", "certs"]).await.expect_error(3, "exists already");
    run(&["cert", "node", "node-1", "--host", "localhost", "--host", "::1", "--dir", "certs"])
        .await
        .expect(0);
    let client = ["cert", "client", "ops", "--role", "admin", "--dir", "certs", "--json"];
    let files = run(&client).await.expect(0).json();
    assert_eq!(files["role"], json!("quorate:client/admin"));
    run(&client).await.expect_error(3, "exists already");
    run(&[&client[..], &["--replace"]].concat()).await.expect(0);
    run(&["cert", "client", "x", "--role", "king", "--dir", "certs"]).await.expect(2);
    let file = |name: &str| folder.path().join("certs").join(name);
    let authority = || (std::fs::read(file("ca.pem")).unwrap(), std::fs::read(file("ca-key.pem")).unwrap());
    let before = authority();
    for name in ["ca", "CA", "ca-key", " x", "x ", ""] {
        for replace in [&[][..], &["--replace"]] {
            let node = ["cert", "node", name, "--dir", "certs"];
            run(&[&node, replace].concat()).await.expect_error(2, "is no name");
            let client = ["cert", "client", name, "--role", "read", "--dir", "certs"];
            run(&[&client, replace].concat()).await.expect_error(2, "is no name");
        }
    }
    run(&["cert", "node", "x", "--days", "0", "--dir", "certs"]).await.expect(2);
    run(&["cert", "node", "x", "--host", "a b", "--dir", "certs"]).await.expect_error(2, "`a b`");
    assert_eq!(authority(), before);
    assert!(!file("x.pem").exists());
    let load = |name: &str| {
        client::tls::Material::load(
            &file("ca.pem"),
            &file(&format!("{name}.pem")),
            &file(&format!("{name}-key.pem")),
        )
    };
    assert_eq!(*load("ops").unwrap().role(), client::Role::client(Access::Admin));
    assert_eq!(*load("node-1").unwrap().role(), client::Role::Node);
}

#[tokio::test]
async fn what_is_too_large_is_named() {
    let cluster = FakeCluster::start(1).await;
    let key = "k".repeat(4097);
    let large = quorate(&cluster, &["put", &key, "v"]).await;
    large.expect_error(3, "the key is too large: 4097 bytes, the limit is 4096");
    let large = with_input(command(&cluster, &["put", "k", "-"]), &[b'v'; (4 << 20) + 9]).await;
    large.expect_error(3, "the value on stdin is too large: the limit is 4194304 bytes");
    cluster.script(|asked| refuse(asked, Refusal::TooLarge { size_bytes: 9 << 20, limit_bytes: 8 << 20 }));
    let large = quorate(&cluster, &["put", "k", "v"]).await;
    large.expect_error(3, "the object, with all of its values, is too large: 9437184 bytes");
}

#[tokio::test]
async fn an_interrupted_write_is_in_doubt_and_an_interrupted_read_is_not() {
    let cluster = FakeCluster::start(1).await;
    cluster.nodes[0].script_data(Act::Silence);
    for (arguments, code) in [(["put", "k", "v"].as_slice(), 4), (["get", "k"].as_slice(), 130)] {
        let arguments = [arguments, &["--timeout", "20s"]].concat();
        let before = cluster.asked();
        let child = command(&cluster, &arguments).spawn().unwrap();
        let begun = Instant::now();
        while cluster.asked() == before {
            assert!(begun.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        interrupt(&child);
        finish(child).await.expect_error(code, "interrupted");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn output_that_nobody_reads_is_no_failure() {
    let cluster = FakeCluster::start(1).await;
    let mut child = command(&cluster, &["status"]).spawn().unwrap();
    drop(child.stdout.take());
    let ran = finish(child).await.expect(0);
    assert_eq!(ran.stderr, "");
}
