//! Who may connect at all: rules by prefix of the client's address.
//!
//! The rule with the longest prefix that holds the client decides; of rules with the same prefix, the one that is about
//! the fewest connections: a listener's before an app's before one for all. Without a rule a client may connect. So an
//! allow list is a denial of everybody (`0.0.0.0/0`, `::/0`) and rules for those who may.

use std::collections::HashMap;
use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use super::{AppName, BadPrefix, ClientAddr, ListenerId, RuleId};

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    Allow,
    Deny,
}

/// A rule, as the routing database describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    pub id: RuleId,
    /// `None`: of all listeners.
    pub listener: Option<ListenerId>,
    /// `None`: of all apps.
    pub app: Option<AppName>,
    pub prefix: IpNet,
    pub access: Access,
}

/// Why a row is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    #[error("action {0:?} is unknown: use allow or deny")]
    Action(String),
    #[error("prefix {0}")]
    Prefix(#[from] BadPrefix),
    #[error("rule {other} is about the same prefix, listener and app: remove one of them")]
    Twice { other: RuleId },
}

impl Access {
    pub const ALL: [Self; 2] = [Self::Allow, Self::Deny];

    pub fn parse(text: &str) -> Result<Self, AccessError> {
        let found = Self::ALL.into_iter().find(|access| access.as_str() == text);
        found.ok_or_else(|| AccessError::Action(text.chars().take(60).collect()))
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// All rules, indexed by prefix.
#[derive(Debug, Clone, Default)]
pub struct AccessList {
    /// For each length of prefix that occurs, longest first, the rules of each prefix.
    by_length: Vec<(u8, HashMap<IpNet, Rules>)>,
}

/// The rules of one prefix. There may be one for each listener and app, so they are looked up and not looked through.
#[derive(Debug, Clone, Default)]
struct Rules {
    of_listener: HashMap<ListenerId, ByApp>,
    of_all: ByApp,
}

/// Those of them that are about one listener, or about all.
#[derive(Debug, Clone, Default)]
struct ByApp {
    of_app: HashMap<AppName, AccessRule>,
    of_all: Option<AccessRule>,
}

impl AccessList {
    /// Adds a rule, unless there is one about the same.
    pub fn add(&mut self, rule: AccessRule) -> Result<(), AccessError> {
        self.beside(&rule).add(rule)
    }

    /// Takes out a rule that was added.
    pub fn remove(&mut self, rule: &AccessRule) {
        self.beside(rule).remove(rule);
    }

    /// The rules with the same prefix and listener.
    fn beside(&mut self, rule: &AccessRule) -> &mut ByApp {
        let rules = self.rules_of(rule.prefix);
        match &rule.listener {
            Some(listener) => rules.of_listener.entry(listener.clone()).or_default(),
            None => &mut rules.of_all,
        }
    }

    fn rules_of(&mut self, prefix: IpNet) -> &mut Rules {
        let length = prefix.prefix_len();
        let at = self.by_length.iter().take_while(|(known, _)| *known > length).count();
        if self.by_length.get(at).is_none_or(|(known, _)| *known != length) {
            self.by_length.insert(at, (length, HashMap::new()));
        }
        #[allow(clippy::indexing_slicing, reason = "it was put there just now, if it was not there before")]
        self.by_length[at].1.entry(prefix).or_default()
    }

    /// The rule that decides about a client, if there is one. Without a listener those of listeners are left out.
    pub fn rule(&self, client: ClientAddr, listener: Option<&ListenerId>, app: &AppName) -> Option<&AccessRule> {
        self.by_length.iter().find_map(|(length, prefixes)| {
            let prefix = IpNet::new(client.ip(), *length).ok()?.trunc();
            prefixes.get(&prefix)?.rule(listener, app)
        })
    }

    /// The rule that keeps a client away.
    pub fn denies(&self, client: ClientAddr, listener: Option<&ListenerId>, app: &AppName) -> Option<&RuleId> {
        self.rule(client, listener, app).filter(|rule| rule.access == Access::Deny).map(|rule| &rule.id)
    }
}

impl Rules {
    fn rule(&self, listener: Option<&ListenerId>, app: &AppName) -> Option<&AccessRule> {
        let of_listener = listener.and_then(|listener| self.of_listener.get(listener));
        of_listener.and_then(|rules| rules.rule(app)).or_else(|| self.of_all.rule(app))
    }
}

impl ByApp {
    fn add(&mut self, rule: AccessRule) -> Result<(), AccessError> {
        let twin = match &rule.app {
            Some(app) => self.of_app.get(app),
            None => self.of_all.as_ref(),
        };
        if let Some(twin) = twin {
            return Err(AccessError::Twice { other: twin.id.clone() });
        }
        match rule.app.clone() {
            Some(app) => _ = self.of_app.insert(app, rule),
            None => self.of_all = Some(rule),
        }
        Ok(())
    }

    fn remove(&mut self, rule: &AccessRule) {
        match &rule.app {
            Some(app) => _ = self.of_app.remove(app),
            None => self.of_all = None,
        }
    }

    fn rule(&self, app: &AppName) -> Option<&AccessRule> {
        self.of_app.get(app).or(self.of_all.as_ref())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use crate::domain::parse_client_prefix;

    fn rule(id: &str, prefix: &str, listener: &str, app: &str, access: Access) -> AccessRule {
        AccessRule {
            id: RuleId::parse(id).unwrap(),
            listener: ListenerId::parse(listener).ok(),
            app: AppName::parse(app).ok(),
            prefix: parse_client_prefix(prefix).unwrap(),
            access,
        }
    }

    const NET: &str = "198.51.100.0/24";

    fn decided(list: &AccessList, client: &str, listener: &str, app: &str) -> Option<String> {
        let client = ClientAddr::new(client.parse().unwrap());
        let (listener, app) = (ListenerId::parse(listener).unwrap(), AppName::parse(app).unwrap());
        list.rule(client, Some(&listener), &app).map(|rule| rule.id.to_string())
    }

    #[test]
    fn the_longest_prefix_then_the_narrowest_rule_decides() {
        let mut list = AccessList::default();
        for rule in [
            rule("all", "0.0.0.0/0", "", "", Access::Deny),
            rule("net", "198.51.100.0/24", "", "", Access::Allow),
            rule("net-mail", "198.51.100.0/24", "", "mail", Access::Deny),
            rule("net-front", "198.51.100.0/24", "front", "", Access::Deny),
            rule("host", "198.51.100.7", "", "", Access::Deny),
            rule("six", "2001:db8::/32", "", "web", Access::Deny),
        ] {
            list.add(rule).unwrap();
        }
        for (client, listener, app, expected) in [
            ("192.0.2.1", "back", "web", Some("all")),
            ("198.51.100.8", "back", "web", Some("net")),
            ("198.51.100.8", "back", "mail", Some("net-mail")),
            ("198.51.100.8", "front", "mail", Some("net-front")),
            ("198.51.100.7", "front", "mail", Some("host")),
            ("::ffff:198.51.100.7", "front", "mail", Some("host")),
            ("2001:db8::1", "front", "web", Some("six")),
            ("2001:db8::1", "front", "mail", None),
        ] {
            assert_eq!(decided(&list, client, listener, app).as_deref(), expected, "{client} {listener} {app}");
        }
    }

    /// A prefix in IPv6 form would never hold the IPv4 clients that it is about.
    #[test]
    fn rules_about_ipv4_clients_in_ipv6_form_hold_them() {
        for prefix in ["::ffff:198.51.100.0/120", "64:ff9b::198.51.100.0/120"] {
            let mut list = AccessList::default();
            list.add(rule("net", prefix, "", "", Access::Deny)).unwrap();
            assert_eq!(decided(&list, "198.51.100.8", "front", "web").as_deref(), Some("net"), "{prefix}");
        }
    }

    #[test]
    fn two_rules_about_the_same_contradict_each_other() {
        let mut list = AccessList::default();
        list.add(rule("a", "198.51.100.0/24", "", "web", Access::Deny)).unwrap();
        let why = list.add(rule("b", "198.51.100.0/24", "", "web", Access::Allow)).unwrap_err().to_string();
        assert!(why.starts_with("rule a is about the same"), "{why}");
        assert!(list.add(rule("c", "198.51.100.0/24", "", "", Access::Allow)).is_ok());
    }

    #[test]
    fn what_is_removed_decides_no_more_and_makes_room() {
        for (listener, app) in [("", ""), ("", "web"), ("front", ""), ("front", "web")] {
            let mut list = AccessList::default();
            let [all, first, second] =
                [("all", "0.0.0.0/0", "", ""), ("a", NET, listener, app), ("b", NET, listener, app)]
                    .map(|(id, prefix, listener, app)| rule(id, prefix, listener, app, Access::Deny));
            list.add(all).unwrap();
            list.add(first.clone()).unwrap();
            assert_eq!(decided(&list, "198.51.100.8", "front", "web").as_deref(), Some("a"), "{listener} {app}");
            list.remove(&first);
            assert_eq!(decided(&list, "198.51.100.8", "front", "web").as_deref(), Some("all"), "{listener} {app}");
            list.add(second).unwrap();
            assert_eq!(decided(&list, "198.51.100.8", "front", "web").as_deref(), Some("b"), "{listener} {app}");
        }
    }

    /// If each were compared with all others, this would take minutes.
    #[test]
    fn a_prefix_can_have_a_rule_for_each_of_many_listeners_and_apps() {
        let count = 100_000;
        let mut list = AccessList::default();
        for n in 0..count {
            let (listener, app) = (format!("l{}", n / 2), if n % 2 == 0 { "" } else { "web" });
            list.add(rule(&format!("r{n}"), NET, &listener, app, Access::Deny)).unwrap();
        }
        for n in (0..count).step_by(2) {
            let decided = |app| decided(&list, "198.51.100.8", &format!("l{}", n / 2), app);
            assert_eq!((decided("mail"), decided("web")), (Some(format!("r{n}")), Some(format!("r{}", n + 1))));
        }
    }

    #[test]
    fn what_is_no_prefix_or_action_is_refused_with_the_remedy() {
        assert!(parse_client_prefix("198.51.100.7/24").unwrap_err().to_string().ends_with("write 198.51.100.0/24"));
        assert!(parse_client_prefix("everybody").is_err());
        assert!(Access::parse("permit").unwrap_err().to_string().ends_with("use allow or deny"));
    }
}
