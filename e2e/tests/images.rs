//! `images/build` without a Docker engine makes what `images/Dockerfile` says.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use postern_e2e::{chart, requires};
use serde_json::Value;

const IMAGES: [&str; 5] = [
    "postern-ca",
    "postern-control",
    "postern-injector",
    "postern-proxy",
    "postern-shop",
];

/// Path in an image -> mode and content (none: a directory).
type Tree = BTreeMap<String, (u32, Option<Vec<u8>>)>;

/// One final stage of the Dockerfile.
#[derive(Debug, Default)]
struct Stage {
    tree: Tree,
    user: String,
    entrypoint: Value,
}

/// What the build stage would have left: a directory per image.
fn staged(directory: &Path) {
    for image in IMAGES {
        for (path, mode) in [
            (image, 0o755),
            ("sbom.cdx.json", 0o644),
            ("etc/passwd", 0o644),
            ("etc/group", 0o644),
        ] {
            let file = directory.join(image).join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, format!("{image}: {path}")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// The Dockerfile, read as an engine reads it, over the build stage's `out`.
fn stages(out: &Path) -> BTreeMap<String, Stage> {
    let mut found: BTreeMap<String, Stage> = BTreeMap::new();
    let mut current = None;
    for line in fs::read_to_string(chart::root().join("images/Dockerfile"))
        .unwrap()
        .lines()
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["FROM", "scratch", "AS", name] => {
                current = Some((*name).to_owned());
                found.entry((*name).to_owned()).or_default();
            }
            ["FROM", ..] => current = None,
            ["COPY", "--from=build", source, "/"] if current.is_some() => {
                let stage = found.get_mut(current.as_ref().unwrap()).unwrap();
                let source = out.join(source.strip_prefix("/out/").unwrap());
                copy(&source, &source, &mut stage.tree);
            }
            ["USER", user] if current.is_some() => {
                (*user).clone_into(&mut found.get_mut(current.as_ref().unwrap()).unwrap().user);
            }
            ["ENTRYPOINT", ..] if current.is_some() => {
                let entrypoint = line.strip_prefix("ENTRYPOINT ").unwrap();
                found.get_mut(current.as_ref().unwrap()).unwrap().entrypoint =
                    serde_json::from_str(entrypoint).unwrap();
            }
            _ => {}
        }
    }
    found
}

fn copy(base: &Path, path: &Path, to: &mut Tree) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let name = path.strip_prefix(base).unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            to.insert(name, (mode, None));
            copy(base, &path, to);
        } else {
            to.insert(name, (mode, Some(fs::read(&path).unwrap())));
        }
    }
}

fn build(arguments: &[&str]) -> Vec<u8> {
    let out = Command::new(chart::root().join("images/build"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

fn tar(arguments: &[&str], archive: &Path) -> Vec<u8> {
    let out = Command::new("tar")
        .args(arguments)
        .arg("-f")
        .arg(archive)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// A docker-archive: its configuration, tag, and the tree and listing of its one layer.
struct Archive {
    config: Value,
    tag: String,
    tree: Tree,
    listing: String,
}

fn unpacked(archive: &Path, into: &Path) -> Archive {
    fs::create_dir_all(into.join("layer")).unwrap();
    let into_text = into.to_str().unwrap();
    tar(&["-x", "-C", into_text], archive);
    let read = |path: &str| fs::read(into.join(path)).unwrap();
    let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    let [image] = manifest.as_array().unwrap().as_slice() else {
        panic!("{manifest}")
    };
    let config = serde_json::from_slice(&read(image["Config"].as_str().unwrap())).unwrap();
    let layer = into.join(image["Layers"][0].as_str().unwrap());
    let listing = String::from_utf8(tar(&["-t", "-v", "--numeric-owner", "--utc"], &layer)).unwrap();
    let root = into.join("layer");
    tar(&["-x", "-p", "-C", root.to_str().unwrap()], &layer);
    let mut tree = Tree::new();
    copy(&root, &root, &mut tree);
    Archive {
        config,
        tag: image["RepoTags"][0].as_str().unwrap().to_owned(),
        tree,
        listing,
    }
}

#[test]
fn the_tars_hold_the_trees_of_the_dockerfile_with_its_user_and_entry_point() {
    if !requires(&["python3", "tar"], false) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (out, images) = (directory.path().join("out"), directory.path().join("images"));
    staged(&out);
    build(&["--staged", out.to_str().unwrap(), "--out", images.to_str().unwrap()]);
    let stages = stages(&out);
    assert_eq!(stages.keys().map(String::as_str).collect::<Vec<_>>(), IMAGES);
    for (name, stage) in stages {
        let archive = unpacked(&images.join(format!("{name}.tar")), &directory.path().join(&name));
        assert_eq!(archive.tree, stage.tree, "{name}");
        assert_eq!(archive.config["config"]["User"], stage.user, "{name}");
        // An app is never the proxy's user, whose connections are not redirected.
        let user = if name == "postern-shop" {
            "1000:1000"
        } else {
            "15371:15371"
        };
        assert_eq!(stage.user, user, "{name}");
        assert_eq!(archive.config["config"]["Entrypoint"], stage.entrypoint, "{name}");
        assert_eq!(stage.entrypoint, serde_json::json!([format!("/{name}")]), "{name}");
        assert!(stage.tree.contains_key(&name), "{name} has no {name}");
        assert_eq!(
            archive.tag,
            format!("localhost/postern/{name}:{}", env!("CARGO_PKG_VERSION")),
            "{name}"
        );
        for line in archive.listing.lines() {
            assert!(
                line.contains(" 0/0 ") && line.contains(" 1970-01-01 00:00 "),
                "{name}: {line}"
            );
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    if !requires(&["python3"], false) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let made = |name: &str| {
        let (out, images) = (
            directory.path().join(name),
            directory.path().join(format!("{name}-images")),
        );
        staged(&out);
        build(&["--staged", out.to_str().unwrap(), "--out", images.to_str().unwrap()]);
        IMAGES.map(|image| fs::read(images.join(format!("{image}.tar"))).unwrap())
    };
    assert!(made("first") == made("second"));
}

#[test]
fn a_bill_of_materials_lists_what_is_linked_in_with_versions_licences_and_checksums() {
    if !requires(&["python3"], false) {
        return;
    }
    let text = build(&["--sbom", "postern-proxy"]);
    assert!(
        text == build(&["--sbom", "postern-proxy"]),
        "the same tree gives the same bill"
    );
    let bill: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(
        (&bill["bomFormat"], &bill["specVersion"]),
        (&"CycloneDX".into(), &"1.5".into())
    );
    assert_eq!(bill["metadata"]["component"]["name"], "postern-proxy");
    let components = bill["components"].as_array().unwrap();
    let names: Vec<&str> = components.iter().map(|c| c["name"].as_str().unwrap()).collect();
    for linked in ["rustls", "aws-lc-sys", "hyper", "postern-identity", "rust-std"] {
        assert!(names.contains(&linked), "{linked} is missing");
    }
    for not_linked in ["criterion", "proptest", "serde_derive", "cc", "postern-e2e", "ratatui"] {
        assert!(!names.contains(&not_linked), "{not_linked} is not linked in");
    }
    let lock = fs::read_to_string(chart::root().join("Cargo.lock")).unwrap();
    for component in components {
        let [name, version, purl, licence] = [
            &component["name"],
            &component["version"],
            &component["purl"],
            &component["licenses"][0]["expression"],
        ]
        .map(|v| v.as_str().unwrap());
        assert!(purl.starts_with("pkg:"), "{name}");
        assert!(
            !licence.is_empty() && licence != "NOASSERTION" && !licence.contains('/'),
            "{name}: {licence}"
        );
        let ours = name.starts_with("postern-");
        if purl.starts_with("pkg:cargo/") && !ours {
            assert!(
                lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"")),
                "{name} {version}"
            );
            assert_eq!(component["hashes"][0]["content"].as_str().unwrap().len(), 64, "{name}");
        }
    }
    let references: Vec<&str> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
    for dependency in bill["dependencies"].as_array().unwrap() {
        for on in chart::strings(&dependency["dependsOn"]) {
            assert!(references.contains(&on), "{on} is no component");
        }
    }
}

/// Where `images/build` has been run: what it left is static.
#[test]
fn binaries_that_were_built_are_static() {
    let built = std::env::var_os("POSTERN_IMAGES_TARGET")
        .map_or_else(|| chart::root().join("target/images-build"), PathBuf::from);
    let built = built.join("staged");
    if !built.is_dir() || !requires(&["ldd"], false) {
        eprintln!("SKIPPED: images/build has not been run here (it checks each binary itself)");
        return;
    }
    for image in IMAGES {
        let binary = built.join(image).join(image);
        if binary.exists() {
            let out = Command::new("ldd").arg(&binary).output().unwrap();
            let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            assert!(
                said.contains("statically linked") || said.contains("not a dynamic"),
                "{image}: {said}"
            );
        }
    }
}
