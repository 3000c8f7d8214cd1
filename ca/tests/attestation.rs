//! First issue by join token, and renewal by the caller's own SVID.
#![allow(clippy::unwrap_used)]

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::issue_request::Attestation;
use postern_api::ca_client::{self, CaError, JoinToken};
use postern_api::refusal::RefusalReason;
use world::{WEB, World, csr, domain, new_key, reason, renewal, trust_of};

mod world;

#[tokio::test]
async fn a_token_gives_its_identity_and_instance_and_the_bundle() {
    let world = World::new().await;
    let issued = world.first_issue(WEB, "web-1").await;
    assert_eq!(issued.svid.id().as_str(), WEB);
    assert_eq!(issued.svid.instance().unwrap().as_str(), "web-1");
    assert_eq!((issued.bundle.roots().len(), issued.issuer_epoch), (1, 1));
}

#[tokio::test]
async fn a_token_is_good_once() {
    let world = World::new().await;
    let token = world.token(WEB, "web-1").await;
    ca_client::first_issue(&world.address(), &token, &domain())
        .await
        .unwrap();
    let error = ca_client::first_issue(&world.address(), &token, &domain())
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            CaError::Refused {
                reason: RefusalReason::TokenRedeemed,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_final());
}

#[tokio::test]
async fn a_token_stays_used_over_a_restart() {
    let world = World::new().await;
    let (used, unused) = (world.token(WEB, "web-1").await, world.token(WEB, "web-2").await);
    ca_client::first_issue(&world.address(), &used, &domain())
        .await
        .unwrap();
    let world = world.restarted().await;
    let error = ca_client::first_issue(&world.address(), &used, &domain())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "token_redeemed");
    ca_client::first_issue(&world.address(), &unused, &domain())
        .await
        .unwrap();
}

#[tokio::test]
async fn of_many_redemptions_at_once_one_wins() {
    let world = World::new().await;
    let token = world.token(WEB, "web-1").await;
    let attempts = (0..8).map(|_| {
        let (address, token) = (world.address(), token.clone());
        tokio::spawn(async move { ca_client::first_issue(&address, &token, &domain()).await })
    });
    let mut won = 0;
    for attempt in attempts.collect::<Vec<_>>() {
        match attempt.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert_eq!(error.reason(), "token_redeemed"),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_bad_csr_costs_no_token() {
    let world = World::new().await;
    let token = world.token(WEB, "web-1").await;
    let attestation = Attestation::JoinToken(token.expose().to_owned());
    let status = world.issue(vec![1, 2, 3], attestation).await.unwrap_err();
    assert_eq!(reason(&status), "csr_malformed");
    ca_client::first_issue(&world.address(), &token, &domain())
        .await
        .unwrap();
}

#[tokio::test]
async fn an_expired_token_is_told_apart_from_an_unknown_one() {
    let world = World::new().await;
    let token = world.try_token(WEB, "web-1", 60).await.unwrap();
    let refused = async |token: &JoinToken| {
        let answer = world
            .issue(csr(&new_key()), Attestation::JoinToken(token.expose().to_owned()))
            .await;
        reason(&answer.unwrap_err()).to_owned()
    };
    world.move_clock(62);
    assert_eq!(refused(&token).await, "token_expired");
    let forged = JoinToken::assemble([1; 16], &[2; 32], token.root_sha256());
    assert_eq!(refused(&forged).await, "token_unknown");
}

#[tokio::test]
async fn a_known_id_with_another_secret_is_unknown_and_does_not_use_the_token_up() {
    let world = World::new().await;
    let token = world.token(WEB, "web-1").await;
    let id = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, token.id()).unwrap();
    let guessed = JoinToken::assemble(id.try_into().unwrap(), &[2; 32], token.root_sha256());
    let error = ca_client::first_issue(&world.address(), &guessed, &domain())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "token_unknown");
    assert!(!error.to_string().contains(guessed.expose().split('.').nth(3).unwrap()));
    ca_client::first_issue(&world.address(), &token, &domain())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_revoked_token_is_gone_and_the_list_shows_the_others() {
    let world = World::new().await;
    let (kept, revoked) = (world.token(WEB, "web-1").await, world.token(WEB, "web-2").await);
    let mut admin = world.admin().await;
    admin
        .revoke_join_token(pb::RevokeJoinTokenRequest {
            id: revoked.id().to_owned(),
        })
        .await
        .unwrap();
    let error = ca_client::first_issue(&world.address(), &revoked, &domain())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "token_unknown");
    let listed = admin
        .list_join_tokens(pb::ListJoinTokensRequest {})
        .await
        .unwrap()
        .into_inner()
        .tokens;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].id.as_str(), listed[0].instance.as_str()),
        (kept.id(), "web-1")
    );
    assert!(!listed[0].redeemed);
    let again = admin
        .revoke_join_token(pb::RevokeJoinTokenRequest {
            id: revoked.id().to_owned(),
        })
        .await;
    assert_eq!(reason(&again.unwrap_err()), "token_unknown");
}

#[tokio::test]
async fn spec_020_no_token_is_made_for_an_id_that_is_not_a_workload_of_this_trust_domain() {
    let world = World::new().await;
    for id in [
        "spiffe://cluster.local",
        "spiffe://cluster.local/",
        "spiffe://other.local/ns/shop/sa/web",
        "spiffe://cluster.local/workload",
        "spiffe://cluster.local/ns/postern-system/sa/postern-ca",
        "web",
    ] {
        let status = world.try_token(id, "web-1", 600).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{id}: {status}");
    }
    assert!(world.try_token(WEB, "no spaces", 600).await.is_err());
    assert!(world.try_token(WEB, "web-1", 24 * 3600).await.is_ok());
    assert!(world.try_token(WEB, "web-1", 24 * 3600 + 1).await.is_err());
}

#[tokio::test]
async fn a_request_without_attestation_is_refused() {
    let world = World::new().await;
    let request = pb::IssueRequest {
        csr: csr(&new_key()),
        attestation: None,
        bundle_sequence: 0,
        ..pb::IssueRequest::default()
    };
    let status = world.client.clone().issue(request).await.unwrap_err();
    assert_eq!(reason(&status), "attestation_missing");
}

#[tokio::test]
async fn the_client_renews_with_a_fresh_key_and_keeps_its_identity() {
    let world = World::new().await;
    let first = world.first_issue(WEB, "web-1").await;
    let trust = trust_of(&first.bundle);
    let second = ca_client::renew(&world.address(), &first.svid, &trust).await.unwrap();
    assert_eq!(second.svid.id(), first.svid.id());
    assert_eq!(second.svid.instance(), first.svid.instance());
    assert_ne!(second.svid.leaf().serial, first.svid.leaf().serial);
    let third = ca_client::renew(&world.address(), &second.svid, &trust).await.unwrap();
    assert_eq!(third.bundle.sequence(), first.bundle.sequence());
}

#[tokio::test]
async fn renewal_goes_on_over_a_restart_of_the_ca_without_a_new_token() {
    let world = World::new().await;
    let first = world.first_issue(WEB, "web-1").await;
    let world = world.restarted().await;
    ca_client::renew(&world.address(), &first.svid, &trust_of(&first.bundle))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_expired_svid_renews_for_a_day_and_not_longer() {
    let world = World::with(|_, config| {
        config.svid_life = std::time::Duration::from_secs(300);
    })
    .await;
    let key = new_key();
    let first = world.issue_for(csr(&key)).await.unwrap();
    let day = 24 * 3600;
    for (shift, expected) in [
        (301, None),
        (300 + day - 5, None),
        (300 + day + 5, Some("renewal_expired")),
    ] {
        world.move_clock(shift);
        let fresh = csr(&new_key());
        let answer = world.issue(fresh.clone(), renewal(&first.chain, &key, &fresh)).await;
        assert_eq!(answer.err().as_ref().map(reason), expected, "{shift} s later");
    }
}

#[tokio::test]
async fn a_renewal_that_is_bent_is_refused_with_its_reason() {
    let world = World::new().await;
    let key = new_key();
    let first = world.issue_for(csr(&key)).await.unwrap();
    let fresh = csr(&new_key());
    let refused = async |csr: &[u8], attestation| {
        let status = world.issue(csr.to_vec(), attestation).await.unwrap_err();
        reason(&status).to_owned()
    };
    // By another key; over another CSR; with no chain; with the issuer as leaf; the previous key once more.
    assert_eq!(
        refused(&fresh, renewal(&first.chain, &new_key(), &fresh)).await,
        "renewal_signature"
    );
    let other = csr(&new_key());
    assert_eq!(
        refused(&fresh, renewal(&first.chain, &key, &other)).await,
        "renewal_signature"
    );
    assert_eq!(refused(&fresh, renewal(&[], &key, &fresh)).await, "renewal_chain");
    assert_eq!(
        refused(&fresh, renewal(&first.chain[1..], &key, &fresh)).await,
        "renewal_chain"
    );
    assert_eq!(
        refused(&fresh, renewal(&first.chain[..1], &key, &fresh)).await,
        "renewal_chain"
    );
    assert_eq!(
        refused(&fresh, renewal(&vec![first.chain[0].clone(); 7], &key, &fresh)).await,
        "renewal_chain"
    );
    let same = csr(&key);
    assert_eq!(
        refused(&same, renewal(&first.chain, &key, &same)).await,
        "csr_key_reused"
    );
    world
        .issue(fresh.clone(), renewal(&first.chain, &key, &fresh))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_svid_of_another_ca_renews_nothing() {
    let (ours, theirs) = (World::new().await, World::new().await);
    let key = new_key();
    let foreign = theirs.issue_for(csr(&key)).await.unwrap();
    let fresh = csr(&new_key());
    let status = ours
        .issue(fresh.clone(), renewal(&foreign.chain, &key, &fresh))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "renewal_chain");
}

#[tokio::test]
async fn a_token_of_another_ca_is_not_shown_to_this_one() {
    let (ours, theirs) = (World::new().await, World::new().await);
    let token = theirs.token(WEB, "web-1").await;
    let error = ca_client::first_issue(&ours.address(), &token, &domain())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "ca_untrusted");
    ca_client::first_issue(&theirs.address(), &token, &domain())
        .await
        .unwrap();
}

#[tokio::test]
async fn nobody_at_the_address_is_told_apart_from_a_refusal() {
    let world = World::new().await;
    let token = world.token(WEB, "web-1").await;
    let address = world.address();
    world.running.stop().await;
    let error = ca_client::first_issue(&address, &token, &domain()).await.unwrap_err();
    assert_eq!((error.reason(), error.is_final()), ("ca_unreachable", false));
}

#[tokio::test]
async fn c_06_a_store_that_cannot_be_written_gives_no_certificate_and_costs_no_token() {
    let world = World::new().await;
    let token = world.token(WEB, "web-1").await;
    // A directory in the way of the temporary file: as if the disk were full.
    let in_the_way = world.store().join(".tokens.json.tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    let error = ca_client::first_issue(&world.address(), &token, &domain())
        .await
        .unwrap_err();
    assert_eq!((error.reason(), error.is_final()), ("store", false));
    let status = world.try_token(WEB, "web-2", 600).await.unwrap_err();
    assert_eq!(reason(&status), "store");
    let revoked = world
        .admin()
        .await
        .revoke_join_token(pb::RevokeJoinTokenRequest {
            id: token.id().to_owned(),
        })
        .await;
    assert_eq!(reason(&revoked.unwrap_err()), "store");
    std::fs::remove_dir(&in_the_way).unwrap();
    ca_client::first_issue(&world.address(), &token, &domain())
        .await
        .unwrap();
    let error = ca_client::first_issue(&world.address(), &token, &domain())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "token_redeemed");
}
