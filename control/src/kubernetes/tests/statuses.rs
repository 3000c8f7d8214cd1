//! What is written about our policies.

use super::*;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/postern-system/leases";

/// One of a policy's conditions.
fn condition<'v>(object: &'v Value, kind: &str) -> &'v Value {
    let conditions = object["status"]["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap()
}

/// Waits until the one policy is as wanted.
async fn until(etcd: &Etcd, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Some(policy) = etcd
            .all(POLICIES)
            .into_iter()
            .find(|policy| policy["status"].is_object() && wanted(policy))
        {
            return policy;
        }
    }
    panic!("it never came: {:#?}", etcd.all(POLICIES));
}

fn statuses(etcd: &Etcd) -> usize {
    etcd.applied()
        .iter()
        .filter(|(path, _)| path.ends_with("/status"))
        .count()
}

/// A proxy of `shop` that has everything in force that this replica has.
fn connect(replica: &Replica, name: &str) {
    let name = ("shop".to_owned(), name.to_owned());
    let version = replica.hub.state().policy_version;
    let mut subscribers = replica.hub.subscribers();
    let id = match subscribers.get(&name).is_some_and(|subscriber| subscriber.connected()) {
        true => subscribers.newest(&name).unwrap(),
        false => subscribers.connect(&name, "spiffe://cluster.local/x", "0.1.0").unwrap(),
    };
    let subscriber = subscribers.of(&name, id).unwrap();
    subscriber.policies.sent(version, version);
    subscriber.policies.acknowledged(version);
}

#[tokio::test(start_paused = true)]
async fn a_policy_says_that_it_is_accepted_and_at_how_many_proxies_it_is_in_force() {
    let etcd = shop();
    etcd.put(POLICIES, policy("shop", "p", deny_all()));
    let replica = Replica::at(&ApiServer::of(&etcd));
    let written = until(&etcd, |_| true).await;
    assert_eq!(condition(&written, "Accepted")["status"], "True");
    assert_eq!(condition(&written, "Accepted")["observedGeneration"], 1);
    assert_eq!(condition(&written, "Enforced")["status"], "False");
    assert_eq!(condition(&written, "Enforced")["message"], "in force at 0 of 3 proxies");
    assert_eq!(written["status"]["proxies"], "0/3");
    let since = condition(&written, "Accepted")["lastTransitionTime"].clone();
    for name in ["cart-1", "cart-2", "web-1"] {
        connect(&replica, name);
    }
    let written = until(&etcd, |policy| policy["status"]["proxies"] == "3/3").await;
    assert_eq!(condition(&written, "Enforced")["status"], "True");
    assert_eq!(condition(&written, "Accepted")["lastTransitionTime"], since);
    // What does not change is not written again.
    let writes = statuses(&etcd);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(statuses(&etcd), writes);
    assert_eq!(writes, 2);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_was_changed_counts_anew() {
    let etcd = shop();
    etcd.put(POLICIES, policy("shop", "p", deny_all()));
    let replica = Replica::at(&ApiServer::of(&etcd));
    replica.ready().await;
    connect(&replica, "web-1");
    until(&etcd, |policy| policy["status"]["proxies"] == "1/3").await;
    let mut changed = etcd.all(POLICIES).remove(0);
    changed["metadata"]["generation"] = json!(2);
    changed["spec"] = json!({ "selector": { "matchLabels": { "app": "web" } }, "action": "DENY", "rules": [{}] });
    etcd.put(POLICIES, changed);
    let written = until(&etcd, |policy| policy["status"]["observedGeneration"] == 2).await;
    assert_eq!(written["status"]["proxies"], "0/1");
    connect(&replica, "web-1");
    until(&etcd, |policy| policy["status"]["proxies"] == "1/1").await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_was_deleted_and_made_anew_at_once_gets_its_status_too() {
    let etcd = shop();
    let first = policy("shop", "p", deny_all());
    etcd.put(POLICIES, first.clone());
    let replica = Replica::at(&ApiServer::of(&etcd));
    replica.ready().await;
    until(&etcd, |policy| policy["status"]["proxies"] == "0/3").await;
    let mut second = first.clone();
    second["metadata"]["uid"] = json!("another");
    etcd.delete(POLICIES, first);
    etcd.put(POLICIES, second);
    until(&etcd, |policy| policy["metadata"]["uid"] == "another").await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_not_accepted_says_what_is_wrong_and_where() {
    let etcd = shop();
    etcd.put(
        POLICIES,
        policy("shop", "p", json!({ "action": "DENI", "rules": [{}] })),
    );
    let _replica = Replica::at(&ApiServer::of(&etcd));
    let written = until(&etcd, |_| true).await;
    let accepted = condition(&written, "Accepted");
    assert_eq!(
        (&accepted["status"], &accepted["reason"]),
        (&json!("False"), &json!("Invalid"))
    );
    let message = accepted["message"].as_str().unwrap();
    let says = "it denies what it selects until it is mended: spec.action";
    assert!(
        message.starts_with(says) && message.contains("did you mean `DENY`?"),
        "{message}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_leader_adds_up_what_replicas_report_and_nobody_else_writes() {
    let etcd = shop();
    etcd.put(POLICIES, policy("shop", "p", deny_all()));
    let server = ApiServer::of(&etcd);
    etcd.put(PODS, pod("postern-system", "control-b", "10.5.0.2", false));
    let a = Replica::leading(&server, Some("control-a"), false);
    let b = Replica::leading(&server, Some("control-b"), false);
    a.ready().await;
    b.ready().await;
    connect(&a, "cart-1");
    connect(&b, "cart-2");
    connect(&b, "web-1");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(statuses(&etcd), 0, "nobody leads");
    a.leads.send_replace(Some(Leadership { epoch: 1 }));
    until(&etcd, |policy| policy["status"]["proxies"] == "3/3").await;
    let leases = etcd.all(LEASES);
    let lease = leases
        .iter()
        .find(|lease| lease["metadata"]["name"] == "postern-control-control-b")
        .unwrap();
    assert_eq!(
        lease["metadata"]["annotations"]["postern.dev/acknowledged"],
        r#"{"shop/p@1":2}"#
    );
    assert_eq!(
        lease["metadata"]["ownerReferences"][0]["uid"], "uid-of-control-b",
        "it goes with its pod"
    );
    // A replica that is gone does not count for long.
    drop(b);
    until(&etcd, |policy| policy["status"]["proxies"] == "1/3").await;
}

/// A set that is applied at once does not flood the API server.
#[tokio::test(start_paused = true)]
async fn statuses_are_written_a_few_at_a_time() {
    let etcd = shop();
    for i in 0..100 {
        etcd.put(POLICIES, policy("shop", &format!("p{i}"), deny_all()));
    }
    let replica = Replica::at(&ApiServer::of(&etcd));
    replica.ready().await;
    let mut before = 0;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = statuses(&etcd);
        assert!(now - before <= 20, "{} in a second", now - before);
        before = now;
    }
    while statuses(&etcd) < 100 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A replica that ended before it had heard of its own pod left a Lease behind that nothing took away.
#[tokio::test(start_paused = true)]
async fn a_replica_writes_its_lease_once_its_own_pod_is_known_and_owns_it() {
    let etcd = shop();
    let replica = Replica::leading(&ApiServer::of(&etcd), Some("control-a"), false);
    replica.ready().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(etcd.all(LEASES).is_empty(), "{:#?}", etcd.all(LEASES));
    etcd.put(PODS, pod("postern-system", "control-a", "10.5.0.1", false));
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let [lease] = etcd.all(LEASES).as_slice() {
            assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "uid-of-control-a");
            return;
        }
    }
    panic!("no Lease was written");
}

#[tokio::test(start_paused = true)]
async fn a_custom_policy_says_that_nobody_is_there_to_be_asked_until_somebody_is() {
    let etcd = shop();
    let spec = json!({ "action": "CUSTOM", "provider": { "name": "opa" }, "rules": [{}] });
    etcd.put(POLICIES, policy("shop", "p", spec));
    let replica = Replica::at(&ApiServer::of(&etcd));
    let written = until(&etcd, |_| true).await;
    assert_eq!(condition(&written, "Accepted")["status"], "False");
    assert_eq!(condition(&written, "Accepted")["reason"], "NoProvider");
    let message = condition(&written, "Accepted")["message"].as_str().unwrap();
    assert!(message.contains("no readable Authorizer `opa`"), "{message}");

    let authorizer = |spec: Value| {
        json!({
            "apiVersion": "postern.dev/v1alpha1", "kind": "Authorizer",
            "metadata": { "name": "opa", "namespace": "shop" }, "spec": spec,
        })
    };
    etcd.put(
        played::AUTHORIZERS,
        authorizer(json!({ "extAuthz": { "address": "127.0.0.1:9191" } })),
    );
    until(&etcd, |policy| condition(policy, "Accepted")["status"] == "True").await;
    // One that cannot be read is as good as none, and the state says why.
    etcd.put(
        played::AUTHORIZERS,
        authorizer(json!({ "extAuthz": { "address": "10.0.0.1:9191" } })),
    );
    until(&etcd, |policy| condition(policy, "Accepted")["status"] == "False").await;
    let bad = &replica.hub.state().bad["Authorizer/shop/opa"];
    assert!(bad[0].contains("another host's address"), "{bad:?}");
}
