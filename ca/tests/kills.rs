//! `kill -9` at random moments of issuing and rotating: what left is kept, what began is done or not, and nothing is done twice.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::admin_client::AdminClient;
use postern_api::ca_client::{self, Issued, JoinToken};
use postern_api::transport;
use postern_identity::bundle::fingerprint;
use rustix::process::Signal;
use tonic::transport::Channel;
use world::program::{done, initialised, path, postern_ca, serve, text};
use world::{WEB, domain, trust_of};

mod world;

/// The issue asks for at least 200.
const KILLS: u32 = 200;
const CALLERS: usize = 3;
/// The longest time between the first call and the kill; a rotation takes a few milliseconds.
const LONGEST: Duration = Duration::from_millis(40);

/// What was seen to leave the CA.
#[derive(Default)]
struct Seen {
    serials: BTreeSet<Vec<u8>>,
    /// Each issuer's certificate, by its number.
    issuers: BTreeMap<u64, [u8; 32]>,
}

impl Seen {
    fn note(&mut self, issued: &Issued) {
        let chain = issued.svid.chain();
        assert!(
            self.serials.insert(issued.svid.leaf().serial.clone()),
            "a serial was used twice: {:02x?}",
            issued.svid.leaf().serial
        );
        let (epoch, issuer) = (issued.issuer_epoch, fingerprint(&chain[1]));
        let known = *self.issuers.entry(epoch).or_insert(issuer);
        assert_eq!(known, issuer, "two keys signed as issuer {epoch}");
    }
}

async fn admin(dir: &Path) -> AdminClient<Channel> {
    AdminClient::new(transport::connect_unix(&dir.join("admin.sock")).await.unwrap())
}

async fn new_token(admin: &mut AdminClient<Channel>, instance: String) -> JoinToken {
    let request = pb::CreateJoinTokenRequest {
        spiffe_id: WEB.to_owned(),
        instance,
        life_seconds: 600,
    };
    let made = admin.create_join_token(request).await.unwrap();
    JoinToken::parse(&made.into_inner().token).unwrap()
}

/// Issues and renews until the CA is gone.
async fn call(listen: String, token: JoinToken, seen: Arc<Mutex<Seen>>) {
    let Ok(mut issued) = ca_client::first_issue(&listen, &token, &domain()).await else {
        return;
    };
    loop {
        seen.lock().unwrap().note(&issued);
        match ca_client::renew(&listen, &issued.svid, &trust_of(&issued.bundle)).await {
            Ok(next) => issued = next,
            Err(_) => return,
        }
    }
}

/// Puts new issuers in place until the CA is gone; the last one that it said signs.
async fn rotate(mut admin: AdminClient<Channel>) -> u64 {
    let mut last = 0;
    while let Ok(answer) = admin.rotate_issuer(pb::RotateIssuerRequest {}).await {
        last = answer.into_inner().issuer_epoch;
    }
    last
}

#[tokio::test]
async fn c_06_two_hundred_kills_while_it_issues_and_rotates_never_reuse_a_serial_or_make_two_issuers_of_one_number() {
    let dir = initialised();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (mut promised, mut recoveries, mut kills) = (1, Vec::new(), 0);
    while kills < KILLS {
        let began = Instant::now();
        let mut serving = serve(dir.path(), "warn");
        recoveries.push(began.elapsed());
        let mut operator = admin(dir.path()).await;
        let now = operator.status(pb::StatusRequest {}).await.unwrap().into_inner();
        // What it said is so; the one that it was about to say may be.
        assert!(
            (promised..=promised + 1).contains(&now.issuer_epoch),
            "issuer {} signs, and {promised} was promised",
            now.issuer_epoch
        );
        promised = now.issuer_epoch;
        let mut callers = tokio::task::JoinSet::new();
        for n in 0..CALLERS {
            let token = new_token(&mut operator, format!("web-{kills}-{n}")).await;
            callers.spawn(call(serving.listen.clone(), token, Arc::clone(&seen)));
        }
        let rotating = tokio::spawn(rotate(operator));
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        let longest = u64::try_from(LONGEST.as_micros()).unwrap();
        tokio::time::sleep(Duration::from_micros(u64::from_le_bytes(random) % longest)).await;
        serving.signal(Signal::KILL);
        serving.child.wait().unwrap();
        kills += 1;
        promised = promised.max(rotating.await.unwrap());
        while let Some(called) = callers.join_next().await {
            called.unwrap();
        }
    }

    // It starts once more, and all of it can be told.
    let mut serving = serve(dir.path(), "warn");
    let token = new_token(&mut admin(dir.path()).await, "web-last".to_owned()).await;
    let last = ca_client::first_issue(&serving.listen, &token, &domain())
        .await
        .unwrap();
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.note(&last);
    let socket = path(dir.path(), "admin.sock");
    let lines = done(&["ledger", "list", "--admin-socket", &socket, "--output", "json"]);
    let records = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let issued = records.filter(|record| record["event"] == "issued");
    let recorded: Vec<String> = issued
        .map(|record| record["serial"].as_str().unwrap().to_owned())
        .collect();
    let distinct: BTreeSet<&str> = recorded.iter().map(String::as_str).collect();
    assert_eq!(distinct.len(), recorded.len(), "a serial was recorded twice");
    for serial in &seen.serials {
        let zeros = serial.iter().take_while(|byte| **byte == 0).count();
        let shown: String = serial[zeros..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(distinct.contains(shown.as_str()), "{shown} left, and is not recorded");
    }
    let verified = postern_ca(&["ledger", "verify", "--admin-socket", &socket]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    serving.signal(Signal::TERM);
    assert!(serving.child.wait().unwrap().success());

    recoveries.sort();
    eprintln!(
        "{kills} kills: {} certificates left, {} issuers, {} signed; ready again after {:?} (median), {:?} (longest)",
        seen.serials.len(),
        promised,
        seen.issuers.len(),
        recoveries[recoveries.len() / 2],
        recoveries[recoveries.len() - 1],
    );
    assert!(
        seen.serials.len() > 100 && promised > 50,
        "the kills came before anything was done"
    );
}
