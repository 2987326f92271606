//! The difference between labs, without any lab.

use super::*;
use crate::{
    lab::wanted::{self, Database, User},
    postgres::password::verifier,
    spec::Follow,
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn node(text: &str, of: Option<&str>) -> NodeSpec {
    let follow = of.map(|of| Follow::of(name(of)));
    NodeSpec { follow, ..wanted::node(&name("l"), &name(text), "postgres:15") }
}

fn wanted(nodes: &[NodeSpec]) -> Wanted {
    Wanted {
        nodes: nodes.iter().map(|spec| WantedNode { spec: spec.clone(), secret: None }).collect(),
        users: Vec::new(),
        databases: Vec::new(),
        init: Vec::new(),
        sync: None,
        publish_rw: None,
        publish_ro: None,
        exact: true,
    }
}

fn there(spec: &NodeSpec, condition: Condition) -> Existing {
    let role = match &spec.follow {
        Some(follow) => Role::Standby { of: follow.of.clone() },
        None => Role::Primary,
    };
    Existing { spec: spec.clone(), role, condition, alone: None, stray: None, stuck: None }
}

const PARAMETERS: [(&str, bool); 4] =
    [("shared_buffers", true), ("max_connections", true), ("work_mem", false), ("log_statement", false)];

fn actual(nodes: &[NodeSpec]) -> Actual {
    let nodes = nodes.iter().map(|spec| there(spec, Condition::Running)).collect();
    let server = Server {
        database: "postgres".to_owned(),
        parameters: PARAMETERS.map(|(name, restarts)| (name.to_owned(), restarts)).into(),
        ..Server::default()
    };
    Actual { nodes, server: Some(server), ..Actual::default() }
}

/// A primary and two standbys, one of them of the other.
fn three() -> Vec<NodeSpec> {
    // Not in the order in which they can be made.
    vec![node("a", Some("b")), node("b", Some("p")), node("p", None)]
}

/// The actions in a few words each.
fn said(changes: &Changes) -> Vec<String> {
    let text = |action: &Action| match action {
        Action::Clear { node } => format!("clear {node}"),
        Action::Create { node, on } => {
            let of = node.spec.follow.as_ref().map_or(String::new(), |follow| format!(" of {}", follow.of));
            let on = if *on == Data::None { "" } else { " on its data" };
            format!("create {}{of}{on}", node.spec.node)
        }
        Action::Start { node } => format!("start {node}"),
        Action::Rejoin { node } => format!("rejoin {node}"),
        Action::Wait { node } => format!("wait {node}"),
        Action::Limit { node, .. } => format!("limit {node}"),
        Action::Publish { node, publish } => format!("publish {} {node}", publish.len()),
        Action::Follow { node, follow } => format!("follow {node} {:?}", follow.delay_ms),
        Action::Policy { node, .. } => format!("policy {node}"),
        Action::Set { node, settings, effect } => {
            let list: Vec<String> =
                settings.iter().map(|(k, v)| format!("{k}={}", v.as_deref().unwrap_or("-"))).collect();
            format!("set {node} {} {effect:?}", list.join(","))
        }
        Action::Replayed { node } => format!("replayed {node}"),
        Action::Remake { spec, why, effect } => format!("remake {} {} {effect:?}", spec.node, why.join(",")),
        Action::User { name, need, .. } => format!("user {name} {need:?}"),
        Action::Database { name, need, .. } => format!("database {name} {need:?}"),
        Action::Run { sql } => format!("run {}", sql.shown),
        Action::Sync { rule } => {
            format!("sync {}", rule.as_ref().map_or("off".to_owned(), ToString::to_string))
        }
        Action::Endpoints { rw, ro } => format!("endpoints {} {}", rw.is_some(), ro.is_some()),
        Action::Remove { node } => format!("remove {node}"),
    };
    changes.actions.iter().map(text).collect()
}

#[track_caller]
fn check(wanted: &Wanted, actual: &Actual, expected: &[&str]) {
    let changes = changes(wanted, actual, false);
    assert_eq!(said(&changes), expected);
    assert!(changes.refused.is_empty(), "{:?}", changes.refused);
}

fn with(specs: &[NodeSpec], name: &str, change: impl Fn(&mut NodeSpec)) -> Vec<NodeSpec> {
    let mut specs = specs.to_vec();
    specs.iter_mut().filter(|spec| spec.node.as_str() == name || name == "*").for_each(change);
    specs
}

fn setting(spec: &mut NodeSpec, name: &str, value: &str) {
    spec.settings.push((name.to_owned(), value.to_owned()));
}

#[test]
fn what_is_missing_is_made_upstream_first() {
    check(&wanted(&three()), &Actual::default(), &["create p", "create b of p", "create a of b"]);
    check(&wanted(&three()), &actual(&three()[2..]), &["create b of p", "create a of b"]);
}

#[test]
fn a_lab_as_it_is_wanted_is_left_alone() {
    check(&wanted(&three()), &actual(&three()), &[]);
    let inexact = Wanted { exact: false, ..wanted(&three()) };
    let other = with(&three(), "*", |spec| spec.image = "postgres:16".to_owned());
    check(&inexact, &actual(&other), &[]);
    // Without a file nobody was meant to be the primary.
    let plain = Wanted { exact: false, ..wanted(&[node("a", None), node("p", None)]) };
    let found = changes(&plain, &actual(&[node("a", None), node("p", Some("a"))]), false);
    assert!(found.notes.is_empty() && said(&found).is_empty(), "{:?}", found.notes);
}

#[test]
fn what_is_down_is_started_primary_first_and_what_is_half_made_is_made_again() {
    let mut lab = actual(&three());
    lab.nodes.iter_mut().for_each(|node| node.condition = Condition::Stopped);
    check(&wanted(&three()), &lab, &["start p", "start b", "start a"]);
    lab.nodes[0].condition = Condition::Half;
    lab.nodes[1].condition = Condition::ComingUp;
    check(&wanted(&three()), &lab, &["start p", "wait b", "clear a", "create a of b"]);
    lab.nodes[1].condition = Condition::Frozen;
    let frozen = changes(&wanted(&three()), &lab, false);
    assert!(frozen.notes.iter().any(|note| note.contains("`b` is frozen")), "{:?}", frozen.notes);
}

#[test]
fn each_change_costs_as_little_as_it_can() {
    let edited = with(&three(), "p", |spec| {
        spec.limits.memory = Some(1 << 30);
        spec.publish = vec!["5433:5432".parse().unwrap()];
        spec.restart = Restart::OnCrash { max: 3 };
        setting(spec, "work_mem", "8MB");
    });
    check(
        &wanted(&edited),
        &actual(&three()),
        &["limit p", "publish 1 p", "policy p", "set p work_mem=8MB Reload"],
    );
    let edited = with(&three(), "p", |spec| setting(spec, "shared_buffers", "64MB"));
    check(&wanted(&edited), &actual(&three()), &["set p shared_buffers=64MB Restart"]);
    check(&wanted(&three()), &actual(&edited), &["set p shared_buffers=- Restart"]);
    let late = with(&three(), "a", |spec| spec.follow.as_mut().unwrap().delay_ms = Some(5));
    check(&wanted(&late), &actual(&three()), &["follow a Some(5)"]);
}

#[test]
fn whom_a_node_follows_stays_and_that_is_said() {
    let mut edited = three();
    edited[0].follow = Some(Follow::of(name("p")));
    let said = changes(&wanted(&edited), &actual(&three()), false);
    assert!(said.actions.is_empty() && said.notes[0].contains("`a` follows `b`, and not `p`"), "{said:?}");
    let said = changes(&wanted(&three()[1..]), &actual(&[node("b", None), node("p", None)]), false);
    assert!(said.notes[0].contains("`b` is a primary, and not a standby of `p`"), "{said:?}");
    // After a switchover the file means the one that is the primary now.
    let turned = [node("a", Some("b")), node("b", None), node("p", Some("b"))];
    let said = changes(&wanted(&three()), &actual(&turned), false);
    assert!(said.notes.len() == 1 && said.notes[0].contains("`b` is the primary now"), "{said:?}");
}

#[test]
fn a_new_container_takes_its_settings_along() {
    let edited = with(&three(), "*", |spec| {
        spec.limits.shm_size = 1 << 29;
        setting(spec, "shared_buffers", "64MB");
    });
    let remade = ["remake b", "remake a", "remake p"]
        .map(|text| format!("{text} shm-size 256M -> 512M,shared_buffers=64MB Restart"));
    check(&wanted(&edited), &actual(&three()), &remade.each_ref().map(String::as_str));
    // Also more than their primary has yet, and then the standbys come first.
    let edited = with(&edited, "*", |spec| setting(spec, "max_connections", "200"));
    let all = "shm-size 256M -> 512M,max_connections=200,shared_buffers=64MB";
    let remade = ["remake b", "remake a", "remake p"].map(|text| format!("{text} {all} Restart"));
    check(&wanted(&edited), &actual(&three()), &remade.each_ref().map(String::as_str));
    let one = with(&edited, "a", |spec| spec.limits.shm_size = wanted::SHM_SIZE);
    let expected = ["set a max_connections=200,shared_buffers=64MB Restart", &remade[0], &remade[2]];
    check(&wanted(&one), &actual(&three()), &expected);
    let mut stopped = actual(&three()[2..]);
    stopped.nodes[0].condition = Condition::Stopped;
    check(&wanted(&edited[2..]), &stopped, &[&format!("remake p {all} AtStart"), "start p"]);
}

#[test]
fn standbys_get_more_before_their_primary_and_less_after_it() {
    let more = with(&three(), "*", |spec| setting(spec, "max_connections", "200"));
    let raised = ["b", "a", "p"].map(|node| format!("set {node} max_connections=200 Restart"));
    check(&wanted(&more), &actual(&three()), &raised.each_ref().map(String::as_str));
    let less = [
        "set p max_connections=- Restart",
        "replayed b",
        "set b max_connections=- Restart",
        "replayed a",
        "set a max_connections=- Restart",
    ];
    check(&wanted(&three()), &actual(&more), &less);
    // A standby that is made now must not have less than its primary has at that moment.
    let less = ["set p max_connections=- Restart", "create b of p", "create a of b"];
    check(&wanted(&three()), &actual(&more[2..]), &less);
}

#[test]
fn standbys_that_run_get_more_before_a_stopped_primary_starts_with_it() {
    let more = with(&three(), "*", |spec| {
        setting(spec, "max_connections", "200");
        spec.limits.shm_size = 1 << 29;
    });
    let mut lab = actual(&three());
    lab.nodes[2].condition = Condition::Stopped;
    let found = said(&changes(&wanted(&more), &lab, false));
    let place = |text: &str| found.iter().position(|action| action.starts_with(text)).unwrap();
    assert!(place("set a max_connections=200") < place("start p"), "{found:?}");
    assert!(place("set b max_connections=200") < place("start p"), "{found:?}");
    assert!(place("remake p") < place("start p") && place("start p") < place("remake b"), "{found:?}");
}

#[test]
fn a_stopped_lab_needs_no_restart_for_what_it_can_have_at_its_start() {
    let edited = with(&three()[2..], "p", |spec| setting(spec, "shared_buffers", "64MB"));
    let mut lab = actual(&three()[2..]);
    lab.nodes[0].condition = Condition::Stopped;
    check(&wanted(&edited), &lab, &["set p shared_buffers=64MB AtStart", "start p"]);
}

#[test]
fn roles_are_as_they_have_become() {
    let mut lab = actual(&[node("a", Some("b")), node("b", None), node("p", Some("b"))]);
    let swapped = changes(&wanted(&three()), &lab, false);
    assert_eq!(said(&swapped), Vec::<String>::new());
    assert!(swapped.notes[0].contains("`b` is the primary now"), "{:?}", swapped.notes);
    // Who comes anew follows the primary that there is.
    let more = [three(), vec![node("c", Some("p"))]].concat();
    check(&wanted(&more), &lab, &["create c of b"]);
    lab.nodes.retain(|node| node.spec.node.as_str() != "p");
    check(&wanted(&more), &lab, &["create p of b", "create c of b"]);
}

fn left(by: &str, loss: Option<&str>) -> Left {
    Left { by: name(by), loss: loss.map(str::to_owned) }
}

#[test]
fn an_old_primary_comes_back_unless_it_has_what_nobody_else_has() {
    let mut lab = actual(&[node("b", None), node("p", None)]);
    lab.nodes[1].role = Role::Superseded { by: name("b") };
    lab.nodes[1].condition = Condition::Stopped;
    lab.left.insert(name("p"), left("b", Some("1 transaction with 1 row")));
    let found = changes(&wanted(&three()[1..]), &lab, false);
    assert_eq!(said(&found), Vec::<String>::new());
    let refused = &found.refused[0];
    assert!(refused.contains("1 transaction with 1 row") && refused.contains("pgbox rejoin p"), "{refused}");
    lab.left.insert(name("p"), left("b", None));
    check(&wanted(&three()[1..]), &lab, &["rejoin p"]);
    lab.left.clear();
    lab.nodes[1].alone = Some("`b` is gone; ...".to_owned());
    assert_eq!(changes(&wanted(&three()[1..]), &lab, false).refused, ["`b` is gone; ..."]);
    lab.left.insert(name("p"), left("b", None));
    lab.nodes[0].role = Role::Standby { of: name("p") };
    let refused = changes(&wanted(&three()[1..]), &lab, false).refused;
    assert!(refused[0].contains("pgbox failover b"), "{refused:?}");
}

#[test]
fn a_standby_that_was_promoted_by_somebody_else_is_refused_and_left_alone() {
    let mut lab = actual(&three());
    lab.nodes[0].stuck = Some("`a` can't follow".to_owned());
    assert_eq!(changes(&wanted(&three()), &lab, false).refused, ["`a` can't follow"]);
    lab.nodes[0].stuck = None;
    lab.nodes[1].stray = Some("`b` was promoted".to_owned());
    lab.nodes[1].condition = Condition::Stopped;
    let found = changes(&wanted(&three()), &lab, false);
    assert_eq!((said(&found), found.refused), (Vec::new(), vec!["`b` was promoted".to_owned()]));
}

#[test]
fn after_down_the_data_of_an_old_primary_follow_the_one_that_took_its_place() {
    let superseded = Data::Superseded(RenewHow::Rewind);
    let data = [("a", Data::Standby), ("b", Data::Primary), ("p", superseded)];
    let mut lab = Actual { data: data.map(|(node, data)| (name(node), data)).into(), ..Actual::default() };
    lab.left.insert(name("p"), left("b", None));
    let expected = ["create b on its data", "create a of b on its data", "create p of b on its data"];
    check(&wanted(&three()), &lab, &expected);
    // Twice: the one that took its place is an old primary, too.
    lab.data = [("a", Data::Primary), ("b", superseded), ("p", superseded)].map(|(n, d)| (name(n), d)).into();
    lab.left.insert(name("b"), left("a", None));
    let expected = ["create a on its data", "create b of a on its data", "create p of a on its data"];
    check(&wanted(&three()), &lab, &expected);
    lab.left.insert(name("p"), left("b", Some("at least 2 transactions with 7 rows")));
    let found = changes(&wanted(&three()), &lab, false);
    assert_eq!(said(&found), expected[..2]);
    assert!(found.refused[0].contains("pgbox volume rm p"), "{:?}", found.refused);
}

#[test]
fn after_down_the_data_say_who_was_the_primary() {
    let data = [("a", Data::Standby), ("b", Data::Primary), ("p", Data::Standby)];
    let data = data.map(|(node, data)| (name(node), data)).into();
    let mut lab = Actual { data, ..Actual::default() };
    let expected = ["create b on its data", "create a of b on its data", "create p of b on its data"];
    check(&wanted(&three()), &lab, &expected);
    lab.data.insert(name("p"), Data::Primary);
    lab.data.insert(name("b"), Data::Standby);
    let expected = ["create p on its data", "create b of p on its data", "create a of b on its data"];
    check(&wanted(&three()), &lab, &expected);
}

/// `p` is the primary of the file.
#[test]
fn an_empty_primary_is_not_made_where_others_have_the_data() {
    let left = |data: &[(&str, Data)]| Actual {
        data: data.iter().map(|(node, data)| (name(node), *data)).collect(),
        ..Actual::default()
    };
    // One of them was the primary.
    let lab = left(&[("a", Data::Standby), ("b", Data::Primary), ("p", Data::None)]);
    check(&wanted(&three()), &lab, &["create b on its data", "create a of b on its data", "create p of b"]);
    assert!(changes(&wanted(&three()), &lab, false).notes[0].contains("`b` is the primary now, and not `p`"));
    for (lab, way_out) in [
        (left(&[("a", Data::Standby), ("b", Data::Standby)]), "NAME/data/standby.signal"),
        (left(&[("a", Data::Primary), ("b", Data::Primary)]), "nobody knows who is meant"),
        (left(&[("p", Data::Standby), ("a", Data::Standby), ("b", Data::None)]), "volume rm"),
    ] {
        let found = changes(&wanted(&three()), &lab, false);
        assert_eq!(said(&found), Vec::<String>::new());
        assert!(
            found.refused[0].contains("the data of `a`, `") && found.refused[0].contains(way_out),
            "{:?}",
            found.refused
        );
    }
    // An empty one was made before.
    let mut lab = left(&[("b", Data::Primary), ("p", Data::Primary)]);
    lab.origins = [("b", 1), ("p", 2)].map(|(node, origin)| (name(node), origin)).into();
    let found = changes(&wanted(&three()), &lab, false);
    assert_eq!(said(&found), ["create p on its data", "create a of p"]);
    assert!(found.refused[0].contains("of another cluster than those of `p`"), "{:?}", found.refused);
}

#[test]
fn who_is_to_follow_a_node_that_does_not_come_up_follows_the_primary() {
    let data = [("a", Data::Standby), ("b", Data::Superseded(RenewHow::Rewind)), ("p", Data::Primary)];
    let mut lab = Actual { data: data.map(|(node, data)| (name(node), data)).into(), ..Actual::default() };
    lab.left.insert(name("b"), left("p", Some("1 transaction")));
    let found = changes(&wanted(&three()), &lab, false);
    assert_eq!(said(&found), ["create p on its data", "create a of p on its data"]);
    assert_eq!(found.refused.len(), 1, "{:?}", found.refused);
    assert!(found.notes[0].contains("`a` follows `p`, and not `b`"), "{:?}", found.notes);
    // Nobody is there to be followed.
    let nodes = vec![there(&node("x", Some("p")), Condition::Running)];
    let lab = Actual { nodes, ..Actual::default() };
    let found = changes(&wanted(&three()), &lab, false);
    assert_eq!(said(&found), Vec::<String>::new());
    assert!(found.refused[1].contains("`b` is left out: `p`, which it is to follow"), "{:?}", found.refused);
}

#[test]
fn an_empty_primary_is_not_put_before_standbys_that_have_data() {
    let lab = actual(&three()[..2]);
    let found = changes(&wanted(&three()), &lab, false);
    assert_eq!(said(&found), Vec::<String>::new());
    assert!(found.refused[0].contains("`p` is gone with its data"), "{:?}", found.refused);
    // Also not before the old primary, in whose place one of its standbys was.
    let lab = actual(&[node("p", Some("a"))]);
    let found = changes(&wanted(&[node("p", None), node("a", Some("p"))]), &lab, false);
    assert_eq!(said(&found), Vec::<String>::new());
    assert!(
        found.refused[0].contains("`a` is gone with its data, and `p` follows it"),
        "{:?}",
        found.refused
    );
}

#[test]
fn what_is_not_wanted_goes_only_when_told_and_followers_first() {
    let keep = [node("p", None)];
    let kept = changes(&wanted(&keep), &actual(&three()), false);
    assert_eq!((said(&kept).len(), kept.notes.len()), (0, 2), "{:?}", kept.notes);
    let pruned = changes(&wanted(&keep), &actual(&three()), true);
    assert_eq!(said(&pruned), ["remove a", "remove b"]);
    let followed = changes(&wanted(&[node("b", None)]), &actual(&three()[1..]), true);
    assert_eq!(said(&followed), Vec::<String>::new());
    assert!(followed.refused[0].contains("pgbox switchover b"), "{:?}", followed.refused);
}

#[test]
fn what_counts_only_when_data_are_made_is_no_difference() {
    let edited = with(&three(), "p", |spec| {
        spec.env = vec![("POSTGRES_DB".to_owned(), "x".to_owned()), ("TZ".to_owned(), "UTC".to_owned())];
    });
    let found = changes(&wanted(&edited), &actual(&three()), false);
    assert_eq!(said(&found), ["remake p env TZ Restart"]);
    assert!(found.notes[0].contains("POSTGRES_DB"), "{:?}", found.notes);
}

#[test]
fn content_is_made_when_it_is_missing() {
    let user = |name: &str, password: Option<&str>| User {
        name: name.to_owned(),
        password: password.map(str::to_owned),
    };
    let sql = |text: &str| Sql {
        shown: text.to_owned(),
        place: format!("{text}.sql"),
        database: None,
        text: text.to_owned(),
    };
    let mut lab = actual(&three());
    let mut wanted = wanted(&three());
    wanted.users =
        vec![user("old", None), user("same", Some("x")), user("other", Some("y")), user("new", None)];
    wanted.databases = vec![Database { name: "d".to_owned(), owner: Some("new".to_owned()) }];
    wanted.init = vec![sql("one"), sql("two")];
    wanted.sync = Some(Some("any 1 (b)".parse().unwrap()));
    let server = lab.server.as_mut().unwrap();
    for role in ["old", "same", "other"] {
        server.roles.insert(role.to_owned(), Some(verifier("x")));
    }
    server.done.insert(("postgres".to_owned(), done(&sql("one"))));
    let missing =
        ["user other Differs", "user new Missing", "database d Missing", "run two", "sync any 1 (b)"];
    check(&wanted, &lab, &missing);
    lab.sync = Some("any 1 (b)".parse().unwrap());
    let port: Publish = "5433:5432".parse().unwrap();
    lab.publish.rw = vec![port];
    (wanted.publish_rw, wanted.publish_ro) = (Some(Some(port)), Some(None));
    let server = lab.server.as_mut().unwrap();
    server.databases.insert("d".to_owned(), "postgres".to_owned());
    server.done.insert(("postgres".to_owned(), done(&sql("two"))));
    server.roles.insert("new".to_owned(), None);
    check(&wanted, &lab, &["user other Differs", "database d Differs"]);
    (wanted.publish_rw, wanted.publish_ro) = (Some(None), Some(Some(port)));
    check(&wanted, &lab, &["user other Differs", "database d Differs", "endpoints true true"]);
    lab.server = None;
    assert!(said(&changes(&wanted, &lab, false)).contains(&"user old Unknown".to_owned()));
}

#[test]
fn sql_that_has_changed_since_it_ran_is_told_and_not_run_again() {
    let sql = |place: &str, text: &str| Sql {
        shown: place.to_owned(),
        place: place.to_owned(),
        database: None,
        text: text.to_owned(),
    };
    let mut lab = actual(&three());
    let mut wanted = wanted(&three());
    let server = lab.server.as_mut().unwrap();
    server.done = [sql("#1", "a"), sql("#2", "b")].map(|sql| ("postgres".to_owned(), done(&sql))).into();
    wanted.init = vec![sql("#1", "a"), sql("#2", "b, and more")];
    let found = changes(&wanted, &lab, false);
    assert_eq!(said(&found), Vec::<String>::new());
    assert!(found.notes[0].contains("#2 has changed since it ran"), "{:?}", found.notes);
    // One more before them is new, though it has the number of another one.
    wanted.init = vec![sql("#1", "new"), sql("#2", "a"), sql("#3", "b")];
    check(&wanted, &lab, &["run #1"]);
}

#[test]
fn names_that_nobody_knows_are_wrong_before_anything_is_done() {
    let mut file = wanted(&three());
    let of = |owner: &str| Database { name: "d".to_owned(), owner: Some(owner.to_owned()) };
    file.databases = vec![of("nobody")];
    let mut lab = actual(&three());
    let found = changes(&file, &lab, false);
    assert!(found.wrong[0].contains("[users.nobody]") && found.notes.is_empty(), "{found:?}");
    // Before there is a server, only the file can be asked; and data that nobody can ask may have any role.
    lab = Actual::default();
    assert_eq!(changes(&file, &lab, false).wrong.len(), 1);
    file.databases = vec![of("postgres")];
    assert_eq!(changes(&file, &lab, false).wrong, Vec::<String>::new());
    file.databases = vec![of("nobody")];
    file.users = vec![User { name: "nobody".to_owned(), password: None }];
    assert_eq!(changes(&file, &lab, false).wrong, Vec::<String>::new());
    file.users.clear();
    lab.data.insert(name("p"), Data::Primary);
    let found = changes(&file, &lab, false);
    assert!(
        found.wrong.is_empty() && found.notes[0].contains("of user nobody, and the file has no such user"),
        "{found:?}"
    );
}
