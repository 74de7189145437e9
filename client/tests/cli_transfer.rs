//! `quorate import` and `quorate export`.

// In a test a panic is a finding, in its helpers too.
#![allow(clippy::unwrap_used)]

mod fake;

use std::{
    fmt::Write as _,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use client::{Refusal, Request};
use fake::{
    Act, Asked, DEFAULT, FakeCluster, LWW,
    cli::{Ran, command, finish, interrupt, quorate, with_input},
    doubtful, refuse,
};
use serde_json::json;

fn file(cluster: &FakeCluster, name: &str, contents: &str) -> PathBuf {
    let path = cluster.folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    path
}

/// Lines of `count` products.
fn products(count: usize) -> String {
    (0..count).fold(String::new(), |mut lines, index| {
        let _ = writeln!(lines, r#"{{ "sku":"p-{index}", "price": {index}.10, "name":"käse" }}"#);
        lines
    })
}

async fn import(cluster: &FakeCluster, path: &Path, more: &[&str]) -> Ran {
    let arguments = ["import", path.to_str().unwrap(), "--key-field", "sku", "--json"];
    quorate(cluster, &[&arguments, more].concat()).await
}

async fn export(cluster: &FakeCluster, name: &str, more: &[&str]) -> String {
    let path = cluster.folder.path().join(name);
    let arguments = ["export", "--output", path.to_str().unwrap()];
    quorate(cluster, &[&arguments, more].concat()).await.expect(0);
    std::fs::read_to_string(path).unwrap()
}

fn changes(cluster: &FakeCluster) -> u64 {
    cluster.shared.store.lock().unwrap().changes
}

#[tokio::test]
async fn every_line_is_stored_as_it_is_and_a_second_run_changes_nothing() {
    let cluster = FakeCluster::start(3).await;
    let path = file(&cluster, "products.ndjson", &products(500));
    let first = import(&cluster, &path, &[]).await.expect(0).json();
    assert_eq!((&first["written"], &first["skipped"]), (&json!(500), &json!(0)));
    let values = cluster.shared.store.lock().unwrap().values(DEFAULT, b"p-7");
    let texts: Vec<_> = values.iter().map(|value| String::from_utf8(value.bytes.to_vec()).unwrap()).collect();
    assert_eq!(texts, [r#"{ "sku":"p-7", "price": 7.10, "name":"käse" }"#]);
    let before = changes(&cluster);
    let second = import(&cluster, &path, &[]).await.expect(0).json();
    assert_eq!((&second["written"], &second["skipped"]), (&json!(0), &json!(500)));
    assert_eq!(changes(&cluster), before);
}

#[tokio::test]
async fn a_different_value_is_replaced_without_a_sibling() {
    for keyspace in ["default", "lww"] {
        let cluster = FakeCluster::start(1).await;
        let path = file(&cluster, "products.ndjson", &products(20));
        import(&cluster, &path, &["--keyspace", keyspace]).await.expect(0);
        let path = file(&cluster, "changed.ndjson", &products(20).replace(".10", ".20"));
        let changed = import(&cluster, &path, &["--keyspace", keyspace]).await.expect(0).json();
        assert_eq!(changed["written"], json!(20));
        let id = if keyspace == "lww" { LWW } else { DEFAULT };
        let values = cluster.shared.store.lock().unwrap().values(id, b"p-3");
        assert_eq!(values.len(), 1);
        assert!(values[0].bytes.windows(4).any(|bytes| bytes == b"3.20"));
    }
}

#[tokio::test]
async fn of_several_lines_with_one_key_the_last_one_counts() {
    let cluster = FakeCluster::start(3).await;
    let mut lines = String::new();
    for round in 0..50 {
        let _ = writeln!(lines, r#"{{"sku":"a","round":{round}}}"#);
        let _ = writeln!(lines, r#"{{"sku":"b-{round}"}}"#);
    }
    let path = file(&cluster, "rounds.ndjson", &lines);
    import(&cluster, &path, &[]).await.expect(0);
    let values = cluster.shared.store.lock().unwrap().values(DEFAULT, b"a");
    assert_eq!(values.len(), 1);
    assert_eq!(values[0].bytes, r#"{"sku":"a","round":49}"#);
}

#[tokio::test]
async fn a_bad_line_stops_the_import_after_what_stands_before_it() {
    let cluster = FakeCluster::start(1).await;
    let lines = products(10).replacen("{ \"sku\":\"p-6\"", "\n{ \"sku\":", 1);
    let path = file(&cluster, "bad.ndjson", &lines);
    let ran = import(&cluster, &path, &[]).await.expect(3);
    assert!(ran.stderr.contains("line 8: not a JSON object"), "{ran:?}");
    assert_eq!(ran.json()["written"], json!(6));
    let skipping = import(&cluster, &path, &["--skip-bad"]).await.expect(0).json();
    assert_eq!((&skipping["written"], &skipping["bad"]), (&json!(3), &json!(1)));
    assert!(!ran.stderr.contains("at line"), "{ran:?}");
    let no_key = file(&cluster, "nokey.ndjson", "{\"sku\":\"a\"}\n{\"id\":1}\n");
    let ran = import(&cluster, &no_key, &[]).await.expect(3);
    assert!(ran.stderr.contains("line 2: it has no field `sku`"), "{ran:?}");
}

#[tokio::test]
async fn bad_lines_that_are_skipped_are_named_and_of_many_the_first() {
    let cluster = FakeCluster::start(1).await;
    let path = file(&cluster, "bad.ndjson", &format!("{}{}", products(2), "{\n".repeat(25)));
    let ran = import(&cluster, &path, &["--skip-bad"]).await.expect(0);
    assert_eq!(ran.json()["bad"], json!(25));
    let named = ran.stderr.lines().filter(|line| line.ends_with("; skipped"));
    assert_eq!(named.count(), 20, "{ran:?}");
    assert!(ran.stderr.contains("line 3: not a JSON object: ") && !ran.stderr.contains("at line"), "{ran:?}");
    assert!(ran.stderr.ends_with("and 5 more bad lines\n"), "{ran:?}");
}

#[tokio::test]
async fn a_failed_import_names_the_line_and_a_second_run_goes_on() {
    let cluster = FakeCluster::start(1).await;
    let path = file(&cluster, "products.ndjson", &products(100));
    let count = Arc::new(AtomicUsize::new(0));
    cluster.script(move |asked| match asked {
        Asked::Data(Request::Put(_)) if count.fetch_add(1, Ordering::Relaxed) >= 40 => {
            refuse(asked, Refusal::TooManySiblings { limit: 64 })
        }
        Asked::Data(_) | Asked::Control(_) => Act::Serve,
    });
    let ran = import(&cluster, &path, &["--concurrency", "4"]).await.expect(3);
    assert!(ran.stderr.contains("quorate: line ") && ran.stderr.contains("too many siblings"), "{ran:?}");
    assert_eq!(ran.json()["written"], json!(40));
    cluster.script(|_| Act::Serve);
    let again = import(&cluster, &path, &[]).await.expect(0).json();
    assert_eq!((&again["written"], &again["skipped"]), (&json!(60), &json!(40)));
}

#[tokio::test]
async fn a_write_in_doubt_is_sent_again_by_an_import() {
    let cluster = FakeCluster::start(3).await;
    let path = file(&cluster, "products.ndjson", &products(60));
    let count = Arc::new(AtomicUsize::new(0));
    // Every fifth write is stored and not acknowledged, in one way or the other.
    cluster.script(move |asked| match asked {
        Asked::Data(Request::Put(_)) => match count.fetch_add(1, Ordering::Relaxed) % 10 {
            0 => Act::ServeInSilence,
            5 => doubtful(),
            _ => Act::Serve,
        },
        Asked::Data(_) | Asked::Control(_) => Act::Serve,
    });
    let summary = import(&cluster, &path, &[]).await.expect(0).json();
    assert_eq!(summary["written"], json!(60));
    for index in 0..60 {
        let key = format!("p-{index}");
        assert_eq!(cluster.shared.store.lock().unwrap().values(DEFAULT, key.as_bytes()).len(), 1, "{key}");
    }
}

#[tokio::test]
async fn an_interrupted_import_stops_and_a_second_run_completes_it() {
    let cluster = FakeCluster::start(1).await;
    let path = file(&cluster, "products.ndjson", &products(400));
    cluster.nodes[0].script_data(Act::Later(Duration::from_millis(20), Box::new(Act::Serve)));
    let arguments = ["import", path.to_str().unwrap(), "--key-field", "sku", "--json", "--concurrency", "4"];
    let child = command(&cluster, &arguments).spawn().unwrap();
    let begun = Instant::now();
    while changes(&cluster) < 20 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    interrupt(&child);
    let ran = finish(child).await.expect(130);
    let written = ran.json()["written"].as_u64().unwrap();
    assert!((20..200).contains(&written), "{written}");
    assert_eq!(changes(&cluster), written);
    cluster.script(|_| Act::Serve);
    let again = import(&cluster, &path, &[]).await.expect(0).json();
    assert_eq!((&again["written"], &again["skipped"]), (&json!(400 - written), &json!(written)));
}

#[tokio::test]
async fn an_import_reads_stdin_and_needs_its_keyspace() {
    let cluster = FakeCluster::start(1).await;
    let run = command(&cluster, &["import", "-", "--key-field", "sku"]);
    let ran = with_input(run, products(3).as_bytes()).await.expect(0);
    assert!(ran.stderr.contains("imported 3 records"), "{ran:?}");
    let path = file(&cluster, "products.ndjson", &products(3));
    let ran = import(&cluster, &path, &["--keyspace", "nope"]).await.expect(3);
    assert!(ran.stderr.contains("no such keyspace: `nope`"), "{ran:?}");
    import(&cluster, Path::new("/no/such/file"), &[]).await.expect_error(3, "/no/such/file");
    import(&cluster, cluster.folder.path(), &[]).await.expect_error(3, "is a directory");
}

#[tokio::test]
async fn what_is_exported_imports_into_the_same_records() {
    let (source, target) = (FakeCluster::start(3).await, FakeCluster::start(1).await);
    let path = file(&source, "products.ndjson", &products(100));
    import(&source, &path, &[]).await.expect(0);
    for (key, value) in [("text", "zeile\nzwei"), ("json", "[1,  2]"), ("pretty", "{\n}"), ("empty", "")] {
        quorate(&source, &["put", key, value]).await.expect(0);
    }
    for sibling in ["one", "two", "three"] {
        quorate(&source, &["put", "siblings", sibling]).await.expect(0);
    }
    quorate(&source, &["put", "ending", "soon", "--ttl", "1h"]).await.expect(0);
    with_input(command(&source, &["put", "bytes", "-"]), b"\xff\xfe").await.expect(0);
    quorate(&source, &["put", "gone", "x"]).await.expect(0);
    quorate(&source, &["delete", "gone"]).await.expect(0);

    let first = export(&source, "first", &[]).await;
    assert_eq!(first.lines().count(), 107);
    assert!(first.contains(r#""siblings":[{"value":"one"},{"value":"three"},{"value":"two"}]"#), "{first}");
    assert_eq!(export(&source, "again", &[]).await, first);
    let path = file(&target, "first", &first);
    assert_eq!(import(&target, &path, &[]).await.expect(0).json()["written"], json!(107));
    assert_eq!(export(&target, "second", &[]).await, first);
    let before = changes(&target);
    assert_eq!(import(&target, &path, &[]).await.expect(0).json()["skipped"], json!(107));
    assert_eq!(changes(&target), before);
}

#[tokio::test]
async fn an_export_by_the_key_field_gives_the_lines_that_were_imported() {
    let cluster = FakeCluster::start(3).await;
    let lines = products(50);
    let path = file(&cluster, "products.ndjson", &lines);
    import(&cluster, &path, &[]).await.expect(0);
    let exported = export(&cluster, "out", &["--key-field", "sku"]).await;
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&exported), sorted(&lines));
    let plain = quorate(&cluster, &["export"]).await.expect(0);
    assert_eq!(plain.stdout.lines().count(), 50);
    assert!(plain.stdout.starts_with(r#"{"$quorate":"record","key":"p-"#), "{}", plain.stdout);
}

#[tokio::test]
async fn siblings_are_not_imported_where_the_last_write_wins() {
    let cluster = FakeCluster::start(1).await;
    let line = r#"{"$quorate":"record","key":"k","siblings":[{"value":"a"},{"value":"b"}]}"#;
    let path = file(&cluster, "siblings", line);
    let ran = import(&cluster, &path, &["--keyspace", "lww"]).await.expect(3);
    assert!(ran.stderr.contains("line 1: the keyspace keeps the last write alone"), "{ran:?}");
}

#[tokio::test]
async fn an_export_that_fails_leaves_no_file_that_looks_whole() {
    let cluster = FakeCluster::start(1).await;
    let path = file(&cluster, "products.ndjson", &products(20));
    import(&cluster, &path, &[]).await.expect(0);
    let count = Arc::new(AtomicUsize::new(0));
    cluster.script(move |asked| match asked {
        Asked::Data(_) if count.fetch_add(1, Ordering::Relaxed) > 10 => {
            refuse(asked, Refusal::Unavailable { required: 2, alive: 1 })
        }
        Asked::Data(_) | Asked::Control(_) => Act::Serve,
    });
    let out = cluster.folder.path().join("out");
    let arguments = ["export", "--output", out.to_str().unwrap(), "--timeout", "300ms"];
    quorate(&cluster, &arguments).await.expect(3);
    assert!(!out.exists());
    assert_eq!(partials(&cluster), Vec::<String>::new());
}

/// The names of unfinished files in the cluster's folder.
fn partials(cluster: &FakeCluster) -> Vec<String> {
    let names = std::fs::read_dir(cluster.folder.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".partial")).collect()
}

#[tokio::test]
async fn an_export_through_a_link_writes_the_file_behind_it_and_leaves_other_files_alone() {
    let cluster = FakeCluster::start(1).await;
    let path = file(&cluster, "products.ndjson", &products(20));
    import(&cluster, &path, &[]).await.expect(0);
    let target = file(&cluster, "target", "old");
    let own = file(&cluster, "target.partial", "the user's own");
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o600)).unwrap();
    let link = cluster.folder.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(export(&cluster, "link", &[]).await.lines().count(), 20);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    let metadata = target.symlink_metadata().unwrap();
    assert!(metadata.is_file() && metadata.permissions().mode() & 0o777 == 0o600, "{metadata:?}");
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "the user's own");
    assert_eq!(partials(&cluster), ["target.partial"]);
    std::fs::remove_file(&target).unwrap();
    let arguments = ["export", "--output", link.to_str().unwrap()];
    quorate(&cluster, &arguments).await.expect_error(3, "a link to what is not there");
    assert!(link.symlink_metadata().unwrap().is_symlink());
}

#[tokio::test]
async fn an_export_to_a_pipe_is_written_into_it() {
    let cluster = FakeCluster::start(1).await;
    let path = file(&cluster, "products.ndjson", &products(20));
    import(&cluster, &path, &[]).await.expect(0);
    let pipe = cluster.folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // A link to it is followed as well.
    let link = cluster.folder.path().join("link");
    std::os::unix::fs::symlink(&pipe, &link).unwrap();
    for name in ["pipe", "link"] {
        let read_from = pipe.clone();
        let reading = tokio::task::spawn_blocking(move || std::fs::read_to_string(read_from).unwrap());
        let output = cluster.folder.path().join(name);
        quorate(&cluster, &["export", "--output", output.to_str().unwrap()]).await.expect(0);
        assert_eq!(reading.await.unwrap().lines().count(), 20);
        assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo());
        assert!(link.symlink_metadata().unwrap().is_symlink());
    }
    assert_eq!(partials(&cluster), Vec::<String>::new());
    let stdout = quorate(&cluster, &["export", "--output", "/dev/fd/1"]).await.expect(0).stdout;
    assert_eq!(stdout.lines().count(), 20);
    let folder = cluster.folder.path().to_str().unwrap();
    quorate(&cluster, &["export", "--output", folder]).await.expect_error(3, folder);
}

#[tokio::test]
async fn an_export_that_waits_for_the_reader_of_a_pipe_can_be_interrupted() {
    let cluster = FakeCluster::start(1).await;
    let pipe = cluster.folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let child = command(&cluster, &["export", "--output", pipe.to_str().unwrap()]).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    interrupt(&child);
    finish(child).await.expect_error(130, "interrupted");
}
