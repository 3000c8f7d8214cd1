//! `rotate --root`, `--taint` and `--dry-run`: the root's replacement, by the admin socket of a running CA.

use std::path::PathBuf;
use std::time::Duration;

use postern_api::ca::v1 as pb;

use super::{dial, said, time_of};

/// After a compromise.
const STILL_BELIEVED: &str = "the new root signs within seconds; certificates under the roots before are still believed until \
                              the stage is `retired` (`rotate --dry-run`): a key that was taken is of use until then";

/// Begins it. The CA goes on by itself.
pub(crate) async fn rotate(admin_socket: PathBuf, taint: bool) -> Result<(), String> {
    let answer = dial(&admin_socket)
        .await?
        .rotate_root(pb::RotateRootRequest { taint })
        .await
        .map_err(said)?;
    if let Some(rotation) = answer.into_inner().rotation {
        println!("{}", line(&rotation));
        if taint {
            println!("{STILL_BELIEVED}");
        }
    }
    Ok(())
}

/// Shows where it stands, or what it would be.
pub(crate) async fn stages(admin_socket: PathBuf) -> Result<(), String> {
    let answer = dial(&admin_socket)
        .await?
        .status(pb::StatusRequest {})
        .await
        .map_err(said)?;
    shown(&answer.into_inner()).iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn shown(status: &pb::StatusResponse) -> Vec<String> {
    let lasting = |seconds: u32| humantime::format_duration(Duration::from_secs(seconds.into())).to_string();
    let (acknowledge, retire) = (
        lasting(status.root_acknowledge_seconds),
        lasting(status.root_retire_seconds),
    );
    let none = pb::RootRotation::default();
    let rotation = status.root_rotation.as_ref().unwrap_or(&none);
    let mut lines = vec![match rotation.stage.as_str() {
        "" => format!(
            "the root {} was never replaced; `rotate --root` would go through:",
            status.root_sha256
        ),
        "retired" => format!("the root {} signs; the last replacement:", status.root_sha256),
        _ => format!("{} follows {}:", rotation.new_root_sha256, rotation.old_root_sha256),
    }];
    let activation = if rotation.tainted {
        "once all that are connected have acknowledged the bundle, or seconds after: the old root is tainted".to_owned()
    } else {
        format!("once all that are connected have acknowledged the bundle, or {acknowledge} after it was published")
    };
    let retirement = if rotation.tainted {
        format!("once all that are connected have acknowledged the bundle and renewed, or after {acknowledge}")
    } else {
        format!("{retire} after the new root signs")
    };
    let stages = [
        ("prepared", rotation.prepared_unix, "a new root, tested", String::new()),
        (
            "published",
            rotation.published_unix,
            "the bundle has both roots",
            "at once".to_owned(),
        ),
        (
            "activated",
            rotation.activated_unix,
            "the new root's issuer signs",
            activation,
        ),
        (
            "retired",
            rotation.retired_unix,
            "the bundle has the new root alone",
            retirement,
        ),
    ];
    for (name, since, what, when) in stages {
        let state = if since == 0 {
            when
        } else {
            format!("since {}", time_of(since))
        };
        lines.push(format!("  {name:9}  {what:35}  {state}"));
    }
    if rotation.next_unix != 0 {
        lines.push(format!("next stage at {} at the latest", time_of(rotation.next_unix)));
    }
    if rotation.awaited_sequence != 0 {
        let wanted = rotation.awaited_sequence;
        lines.push(format!("waiting for bundle {wanted}:"));
        if status.bundle_reports.is_empty() {
            lines.push("  no control watches the bundle here: it is waited for the time above".to_owned());
        }
        for report in &status.bundle_reports {
            let said = match (report.reports, report.lowest_sequence) {
                (false, _) => "does not report (an older version)".to_owned(),
                (true, lowest) if lowest >= wanted => format!("all of {} proxies have it", report.proxies),
                (true, lowest) => format!("of {} proxies the last has bundle {lowest}", report.proxies),
            };
            lines.push(format!("  {}: {said}", report.control));
        }
    }
    lines
}

/// One line of `status`.
pub(crate) fn line(rotation: &pb::RootRotation) -> String {
    let tainted = if rotation.tainted { ", tainted" } else { "" };
    let next = match rotation.next_unix {
        0 => String::new(),
        next => format!(", next stage at {} at the latest", time_of(next)),
    };
    format!(
        "{}{tainted}: {} follows {}{next}",
        rotation.stage, rotation.new_root_sha256, rotation.old_root_sha256
    )
}

/// The same for programs.
pub(super) fn json(rotation: &pb::RootRotation) -> serde_json::Value {
    let time = |unix: i64| (unix != 0).then(|| time_of(unix));
    serde_json::json!({
        "stage": rotation.stage,
        "tainted": rotation.tainted,
        "old_root_sha256": rotation.old_root_sha256,
        "new_root_sha256": rotation.new_root_sha256,
        "prepared": time(rotation.prepared_unix),
        "published": time(rotation.published_unix),
        "activated": time(rotation.activated_unix),
        "retired": time(rotation.retired_unix),
        "next_at_the_latest": time(rotation.next_unix),
        "awaited_bundle": rotation.awaited_sequence,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_are_shown_before_while_and_after_with_what_is_waited_for() {
        let mut status = pb::StatusResponse {
            root_sha256: "aa".to_owned(),
            root_acknowledge_seconds: 600,
            root_retire_seconds: 48 * 3600,
            ..pb::StatusResponse::default()
        };
        let text = shown(&status).join("\n");
        assert!(
            text.contains("never replaced") && text.contains("10m after it was published"),
            "{text}"
        );
        assert!(text.contains("2days after the new root signs"), "{text}");
        status.root_rotation = Some(pb::RootRotation {
            stage: "published".to_owned(),
            old_root_sha256: "aa".to_owned(),
            new_root_sha256: "bb".to_owned(),
            prepared_unix: 1,
            published_unix: 2,
            next_unix: 602,
            awaited_sequence: 7,
            ..pb::RootRotation::default()
        });
        assert!(shown(&status).join("\n").contains("no control watches"));
        let report = |control: &str, lowest_sequence, reports| pb::BundleReport {
            control: control.to_owned(),
            lowest_sequence,
            proxies: 3,
            reports,
        };
        status.bundle_reports = vec![report("a", 7, true), report("b", 6, true), report("c", 0, false)];
        let text = shown(&status).join("\n");
        for says in [
            "bb follows aa",
            "since 1970-01-01T00:00:02Z",
            "next stage at 1970-01-01T00:10:02Z",
            "a: all of 3 proxies have it",
            "b: of 3 proxies the last has bundle 6",
            "c: does not report",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
    }
}
