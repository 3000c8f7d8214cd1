//! Two meshes, each with its CA, control and proxies, and a workload of the one that calls the other. Needs no root.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use postern_e2e::live::Kind;
use postern_e2e::loopback::Loopback;
use postern_e2e::process::eventually;
use postern_e2e::requires;

const PARTNER: &str = "partner.example";
/// The workload that calls: the same namespace and account as one of ours has.
const CALLER: &str = "spiffe://partner.example/ns/shop/sa/w0";

/// Calls a proxy of ours with an SVID of theirs.
fn curl(svid: &Path, more: &[&str], url: &str) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--insecure", "--max-time", "20", "--cert"]);
    command
        .arg(svid.join("svid.pem"))
        .arg("--key")
        .arg(svid.join("key.pem"));
    command.args(more).arg(url);
    command
}

/// The status of an answer; 000: there was none.
fn status(svid: &Path, at: SocketAddr) -> String {
    let only_status = ["--output", "/dev/null", "--write-out", "%{http_code}"];
    let output = curl(svid, &only_status, &format!("https://{at}/")).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn becomes(svid: &Path, at: SocketAddr, wanted: &str) {
    eventually(&format!("an answer of {wanted}"), || {
        (status(svid, at) == wanted).then_some(())
    });
}

/// A call whose answer never ends by itself.
struct Endless {
    call: Child,
    received: PathBuf,
}

impl Endless {
    fn start(svid: &Path, at: SocketAddr) -> Self {
        let received = svid.join("received");
        let more = [
            "--no-buffer",
            "--http2",
            "--max-time",
            "120",
            "--output",
            received.to_str().unwrap(),
        ];
        let grpc = [
            "--data",
            "",
            "--header",
            "content-type: application/grpc",
            "--header",
            "te: trailers",
        ];
        let mut command = curl(svid, &[&more[..], &grpc[..]].concat(), &format!("https://{at}/a.B/C"));
        let call = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { call, received }
    }

    fn length(&self) -> u64 {
        std::fs::metadata(&self.received).map_or(0, |file| file.len())
    }

    fn has_ended(&mut self) -> bool {
        self.call.try_wait().unwrap().is_some()
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.call.kill();
        let _ = self.call.wait();
    }
}

/// Our mesh, the partner's, and what is between them.
struct Meshes {
    ours: Loopback,
    theirs: Loopback,
    federation: PathBuf,
    cache: PathBuf,
    _files: tempfile::TempDir,
}

impl Meshes {
    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let federation = files.path().join("federation.yaml");
        std::fs::write(&federation, "").unwrap();
        let cache = files.path().join("cache");
        let ours = Loopback::of(
            "cluster.local",
            1,
            "1h",
            &[
                "--federation-file",
                federation.to_str().unwrap(),
                "--federation-cache",
                cache.to_str().unwrap(),
                "--federation-longest-poll",
                "1",
            ],
        );
        let theirs = Loopback::of(PARTNER, 1, "1h", &["--bundle-endpoint-listen", "127.0.0.1:0"]);
        Self {
            ours,
            theirs,
            federation,
            cache,
            _files: files,
        }
    }

    /// The sequence of the partner's bundle that was fetched last, as it is kept over a restart.
    fn fetched(&self) -> Option<u64> {
        let kept = std::fs::read_dir(&self.cache).ok()?.filter_map(Result::ok);
        let path = kept
            .map(|file| file.path())
            .find(|path| path.extension().is_some_and(|of| of == "json"))?;
        let entry: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).unwrap();
        let document: serde_json::Value = serde_json::from_str(entry["document"].as_str().unwrap()).unwrap();
        document["spiffe_sequence"].as_u64()
    }

    fn relate(&self, text: &str) {
        let new = self.federation.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &self.federation).unwrap();
    }

    /// The first bundle comes as the partner would hand it over; later ones from their endpoint.
    fn relationship(&self) -> String {
        let endpoint = self.theirs.bundle_endpoint();
        let fetched = Command::new("curl")
            .args(["--silent", "--insecure", "--max-time", "10"])
            .arg(format!("https://{endpoint}/"))
            .output()
            .unwrap();
        let bundle = String::from_utf8(fetched.stdout).unwrap();
        assert!(bundle.contains("x509-svid"), "{bundle}");
        let server = format!("spiffe://{PARTNER}/ns/postern-system/sa/postern-control");
        format!(
            "apiVersion: postern.dev/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {{name: partner}}\nspec:\n  \
             trustDomain: {PARTNER}\n  bundleEndpointURL: https://{endpoint}/\n  \
             bundleEndpointProfile: {{type: https_spiffe, endpointSPIFFEID: '{server}'}}\n  trustDomainBundle: '{bundle}'\n"
        )
    }
}

fn policy(principal: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: partner, namespace: shop}}\n\
         spec: {{rules: [{{from: [{{source: {{principals: ['{principal}']}}}}]}}]}}\n"
    )
}

#[test]
fn a_foreign_workload_is_refused_until_it_is_related_and_named_and_again_when_the_relationship_ends() {
    if !requires(&["curl"], false) {
        return;
    }
    let meshes = Meshes::start();
    let (ours, theirs) = (&meshes.ours, &meshes.theirs);
    let (at, grpc) = (ours.inbound(0, Kind::Http1), ours.inbound(0, Kind::Grpc));
    let svid = theirs.svid_files(CALLER, "caller");
    let own = ours.svid_files(&ours.id(0), "own");
    becomes(&own, at, "200");

    // Nobody of another trust domain gets through a handshake.
    assert_eq!(status(&svid, at), "000");
    meshes.relate(&meshes.relationship());
    // Believed, and allowed nothing: the policy that lets everybody of our namespace `shop` in does not mean theirs.
    becomes(&svid, at, "403");
    let denied = ours
        .access_log(0)
        .into_iter()
        .rfind(|line| line["peer_id"] == CALLER || line["source"] == CALLER);
    assert!(
        denied.is_some(),
        "the access log names the caller: {:?}",
        ours.access_log(0).last()
    );
    ours.write("partner.yaml", &policy("partner.example/ns/shop/sa/other"));
    ours.write("partner.yaml", &policy("partner.example/ns/shop/sa/w0"));
    becomes(&svid, at, "200");
    let other = theirs.svid_files("spiffe://partner.example/ns/shop/sa/other", "other");
    assert_eq!(status(&other, at), "403");

    // Another issuer signs there, and their bundle has its key: it is fetched, and goes on to hold it.
    let before = eventually("a first fetch", || meshes.fetched());
    theirs.rotate_issuer();
    eventually("a newer bundle", || {
        meshes.fetched().filter(|sequence| *sequence > before)
    });
    let newer = theirs.svid_files(CALLER, "newer");
    becomes(&newer, at, "200");
    assert_eq!(status(&svid, at), "200");

    // The relationship ends, and with it what lives on it.
    let mut endless = Endless::start(&newer, grpc);
    for messages in [1, 10] {
        eventually("a call that goes on", || {
            assert!(!endless.has_ended());
            (endless.length() >= messages * 5).then_some(())
        });
    }
    meshes.relate("");
    eventually("the end of the call", || endless.has_ended().then_some(()));
    becomes(&newer, at, "000");
    assert_eq!(status(&own, at), "200");
}
