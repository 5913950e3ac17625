//! The committed Cap'n Proto code is what the schemas say.
//!
//! Needs the `capnp` tool; without it the test says so and proves nothing. `PANGEA_BLESS=1 cargo test -p pangea-ipc
//! --test generated` writes the code anew after a schema has changed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

const SCHEMAS: [&str; 4] = ["common", "worker", "node", "peer"];

#[test]
fn generated_code_is_fresh() {
    if Command::new("capnp").arg("--version").output().is_err() {
        println!("skipped: there is no capnp tool on this machine");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = root.join("../schema");
    let fresh = std::env::temp_dir().join(format!("pangea-generated-{}", std::process::id()));
    std::fs::create_dir_all(&fresh).unwrap();
    let mut command = capnpc::CompilerCommand::new();
    command.src_prefix(&schema).output_path(&fresh).default_parent_module(vec!["generated".into()]);
    for name in SCHEMAS {
        command.file(schema.join(format!("{name}.capnp")));
    }
    command.run().unwrap();
    let bless = std::env::var_os("PANGEA_BLESS").is_some();
    for name in SCHEMAS {
        let file = format!("{name}_capnp.rs");
        let made = std::fs::read_to_string(fresh.join(&file)).unwrap();
        let committed = root.join("src/generated").join(&file);
        if bless {
            std::fs::write(&committed, made).unwrap();
        } else {
            let kept = std::fs::read_to_string(&committed).unwrap_or_default();
            assert!(kept == made, "{file} is stale: run PANGEA_BLESS=1 cargo test -p pangea-ipc --test generated");
        }
    }
    std::fs::remove_dir_all(&fresh).unwrap();
}
