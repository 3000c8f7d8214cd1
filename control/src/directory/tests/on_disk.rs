//! The same, with files: the bounds of a look, and the watch.

use std::fs;
use std::path::Path;

use tokio::sync::mpsc;

use super::super::scan::{MAX_DEPTH, MAX_FILE, MAX_FILES, MAX_TOTAL, scan};
use super::super::watch::{first, follow};
use super::*;

/// Zeros are text, and a sparse file holds many of them.
fn sparse(path: &Path, length: u64) {
    fs::File::create(path).unwrap().set_len(length).unwrap();
}

fn names(scan: &Scan) -> Vec<&str> {
    scan.files.keys().map(|name| &**name).collect()
}

fn unreadable<'s>(scan: &'s Scan, name: &str) -> &'s str {
    match &scan.files[name] {
        Found::Unreadable(why) => why,
        Found::Text(_) => panic!("{name} was read"),
    }
}

#[test]
fn yaml_files_are_read_in_folders_too_and_hidden_ones_are_not() {
    let root = tempfile::tempdir().unwrap();
    for folder in ["shop/cart", ".git", "looks-like.yaml"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    for file in [
        "a.yaml",
        "b.yml",
        "shop/cart/c.yaml",
        "looks-like.yaml/d.yaml",
        ".hidden.yaml",
        ".git/e.yaml",
        "a.yaml~",
        "README.md",
    ] {
        fs::write(root.path().join(file), "").unwrap();
    }
    let seen = scan(root.path());
    assert_eq!(
        names(&seen),
        ["a.yaml", "b.yml", "looks-like.yaml/d.yaml", "shop/cart/c.yaml"]
    );
    assert!(seen.complete && seen.errors.is_empty(), "{:?}", seen.errors);
}

#[test]
fn a_file_of_1_mib_is_read_and_a_longer_one_is_not() {
    let root = tempfile::tempdir().unwrap();
    sparse(&root.path().join("at.yaml"), MAX_FILE);
    sparse(&root.path().join("past.yaml"), MAX_FILE + 1);
    let seen = scan(root.path());
    assert!(matches!(&seen.files["at.yaml"], Found::Text(text) if text.len() as u64 == MAX_FILE));
    assert_eq!(unreadable(&seen, "past.yaml"), "is longer than 1048576 bytes");
    assert!(seen.complete, "a bad file hides no other");
}

#[test]
fn past_1024_files_or_64_mib_the_rest_is_not_read_and_nothing_counts_as_deleted() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..MAX_FILES {
        fs::write(root.path().join(format!("{i:04}.yaml")), "").unwrap();
    }
    let seen = scan(root.path());
    assert_eq!(
        (seen.files.len(), seen.complete, seen.errors.len()),
        (MAX_FILES, true, 0)
    );
    fs::write(root.path().join("one-more.yaml"), "").unwrap();
    let seen = scan(root.path());
    assert_eq!((seen.files.len(), seen.complete), (MAX_FILES, false));
    assert!(
        seen.errors[0].contains("more than 1024 YAML files"),
        "{:?}",
        seen.errors
    );

    let root = tempfile::tempdir().unwrap();
    let most = MAX_TOTAL as u64 / MAX_FILE;
    for i in 0..most {
        sparse(&root.path().join(format!("{i:04}.yaml")), MAX_FILE);
    }
    let seen = scan(root.path());
    assert_eq!(
        (seen.files.len() as u64, seen.complete, seen.errors.len()),
        (most, true, 0)
    );
    drop(seen);
    sparse(&root.path().join("one-byte-more.yaml"), 1);
    let seen = scan(root.path());
    assert_eq!((seen.files.len() as u64, seen.complete), (most, false));
    assert!(seen.errors[0].contains("more than 67108864 bytes"), "{:?}", seen.errors);
}

#[test]
fn folders_are_read_eight_deep() {
    let root = tempfile::tempdir().unwrap();
    let deepest: std::path::PathBuf = (0..MAX_DEPTH).map(|i| i.to_string()).collect();
    fs::create_dir_all(root.path().join(&deepest).join("past")).unwrap();
    fs::write(root.path().join(&deepest).join("at.yaml"), "").unwrap();
    fs::write(root.path().join(&deepest).join("past/past.yaml"), "").unwrap();
    let seen = scan(root.path());
    assert_eq!(names(&seen), ["0/1/2/3/4/5/6/7/at.yaml"]);
    assert!(seen.errors[0].ends_with("folders are read 8 deep"), "{:?}", seen.errors);
}

#[test]
fn what_is_no_text_or_no_file_is_refused_with_its_reason() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("latin1.yaml"), b"a: 1\nb: \xe9\n").unwrap();
    std::os::unix::fs::symlink("/dev/zero", root.path().join("endless.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.path().join("dangling.yaml")).unwrap();
    let seen = scan(root.path());
    assert_eq!(names(&seen), ["endless.yaml", "latin1.yaml"]);
    assert_eq!(unreadable(&seen, "latin1.yaml"), "line 2 is not UTF-8");
    assert_eq!(unreadable(&seen, "endless.yaml"), "is no ordinary file");
}

#[tokio::test]
async fn a_directory_that_is_none_is_an_error_at_the_start_and_a_fault_later() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    fs::write(&file, CART).unwrap();
    let mut directory = Watched::new().directory;
    assert!(first(&mut directory, &root.path().join("none")).await.is_err());
    assert!(first(&mut directory, &file).await.is_err());
    let load = first(&mut directory, root.path()).await.unwrap();
    assert_eq!(keys(&load), ["Workload shop/cart"]);
    let gone = root.path().to_path_buf();
    drop(root);
    let seen = scan(&gone);
    assert!(
        !seen.complete && seen.errors[0].starts_with("cannot list"),
        "{:?}",
        seen.errors
    );
}

/// Waits for a state; every wait ends.
async fn until(loads: &mut mpsc::UnboundedReceiver<Load>, wanted: impl Fn(&Load) -> bool) -> Load {
    let found = async {
        loop {
            let load = loads.recv().await.unwrap();
            if wanted(&load) {
                return load;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.unwrap()
}

#[tokio::test]
async fn the_watch_sees_edits_atomic_replacement_renames_and_swapped_links() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let mut directory = Watched::new().directory;
    first(&mut directory, root.path()).await.unwrap();
    let (sent, mut loads) = mpsc::unbounded_channel();
    let following = tokio::spawn(follow(directory, root.path().to_path_buf(), move |load| {
        let _ = sent.send(load);
    }));

    fs::write(path("a.yaml"), CART).unwrap();
    until(&mut loads, |load| keys(load) == ["Workload shop/cart"]).await;
    // As editors and `postern` itself save: a new file in the old one's place.
    fs::write(path(".a.yaml.new"), BROKEN).unwrap();
    fs::rename(path(".a.yaml.new"), path("a.yaml")).unwrap();
    let load = until(&mut loads, |load| load.bad.contains_key("a.yaml")).await;
    assert_eq!(keys(&load), ["Workload shop/cart"]);
    fs::write(path("a.yaml"), CART).unwrap();
    until(&mut loads, |load| load.bad.is_empty()).await;

    fs::create_dir(path("moved")).unwrap();
    fs::rename(path("a.yaml"), path("moved/b.yaml")).unwrap();
    let moved = |load: &Load| {
        assert_eq!(
            (keys(load), &load.bad),
            (vec!["Workload shop/cart".to_owned()], &BTreeMap::new())
        );
        files_of(load) == ["moved/b.yaml"]
    };
    until(&mut loads, moved).await;
    fs::remove_file(path("moved/b.yaml")).unwrap();
    until(&mut loads, |load| load.documents.is_empty()).await;

    // As a ConfigMap is mounted: the files are links through a link that is swapped.
    for (version, text) in [("..1", policy("one", "ALLOW")), ("..2", policy("two", "ALLOW"))] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("p.yaml"), text).unwrap();
    }
    std::os::unix::fs::symlink("..1", path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/p.yaml", path("p.yaml")).unwrap();
    until(&mut loads, |load| keys(load) == ["AuthorizationPolicy shop/one"]).await;
    std::os::unix::fs::symlink("..2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    until(&mut loads, |load| keys(load) == ["AuthorizationPolicy shop/two"]).await;
    following.abort();
}
