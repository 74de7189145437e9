//! The reference of the configuration, as Markdown, of what the code itself says of each setting.

use std::fmt::Write as _;

use super::{Config, KeyHelp};

/// What stands above a section's settings.
const SECTIONS: [(&str, &str); 5] = [
    ("node.", "`[node]`: this node's own"),
    ("cluster.founders[0].", "`[[cluster.founders]]`: one for each founder"),
    (
        "cluster.keyspaces[0].",
        "`[[cluster.keyspaces]]`: one for each keyspace that is to exist from the start",
    ),
    ("cluster.", "`[cluster]`: the same on all nodes"),
    ("limits.", "`[limits]`: may differ between nodes"),
];

const BEGINNING: &str = "\
# Configuration

This page is made by `quorated config-reference`, of what the program itself knows; a test compares the two.

A node reads one TOML file, `quorated run --config FILE`. Paths in it are relative to the file. `quorated check-config` reports
everything that is wrong with a file at once; an unknown key is a fault. Each key of `[node]`, `[cluster]` and `[limits]` that
is a single value can be overridden by an environment variable: `QUORATE_NODE_LISTEN` for `node.listen`.

Founders and the keyspaces of the file count when the cluster is born. Afterwards the cluster's document does, which
`quorate keyspace create` and `quorate readmit` change by agreement.
";

/// Every setting, section by section: what it may be, what it is if nothing is said, and what it means.
#[must_use]
pub fn reference() -> String {
    let help = Config::help();
    let section_of = |key: &KeyHelp| SECTIONS.iter().position(|(prefix, _)| key.key.starts_with(prefix));
    let mut text = BEGINNING.to_owned();
    for shown in [0, 3, 1, 2, 4] {
        let (prefix, title) = SECTIONS[shown];
        let _ = write!(text, "\n## {title}\n\n| key | default | may be | |\n|---|---|---|---|\n");
        for key in help.iter().filter(|key| section_of(key) == Some(shown)) {
            let default = key
                .default
                .as_ref()
                .map_or_else(|| "must be given".to_owned(), |default| format!("`{default}`"));
            let _ = writeln!(
                text,
                "| `{}` | {default} | {} | {} |",
                &key.key[prefix.len()..],
                key.kind,
                key.help
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_the_program_says() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        let found = std::fs::read_to_string(page).unwrap();
        assert!(
            found == reference(),
            "docs/configuration.md is not current: cargo run --bin quorated -- config-reference > docs/configuration.md"
        );
    }

    #[test]
    fn every_setting_is_on_the_page_once() {
        let text = reference();
        for key in Config::help() {
            let name = key.key.rsplit('.').next().unwrap();
            assert!(text.contains(&format!("| `{name}` | ")), "{} is missing", key.key);
            assert!(!key.help.contains('|'), "{} would break the table", key.key);
        }
        let rows = text.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, Config::help().len());
    }
}
