//! What a replay has not sent because the endpoints of an account cannot be read.

use std::collections::BTreeMap;

use walhook_core::event::AccountId;

/// Accounts that are named.
const NAMED: usize = 10;

/// Events that no delivery was made of, by account.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    accounts: BTreeMap<AccountId, (u64, String)>,
    /// Those of accounts beyond the ones that are named.
    others: u64,
}

impl LeftOut {
    /// Adds events of an account, and why.
    pub(super) fn add(&mut self, account: &AccountId, events: u64, why: &str) {
        if let Some((known, _)) = self.accounts.get_mut(account) {
            *known += events;
        } else if self.accounts.len() < NAMED {
            self.accounts.insert(account.clone(), (events, why.to_owned()));
        } else {
            self.others += events;
        }
    }

    /// Adds all that the other one holds.
    pub(super) fn append(&mut self, other: Self) {
        for (account, (events, why)) in other.accounts {
            self.add(&account, events, &why);
        }
        self.others += other.others;
    }

    /// What to tell the operator, where there is anything.
    pub(super) fn to_text(&self) -> Option<String> {
        let mut named: Vec<String> = self
            .accounts
            .iter()
            .map(|(account, (events, why))| {
                format!("{events} of account {} ({why})", account.escape_debug())
            })
            .collect();
        if self.others > 0 {
            named.push(format!("{} of other accounts", self.others));
        }
        (!named.is_empty()).then(|| {
            let named = named.join(", ");
            format!(
                "events were left out, for the endpoints of their accounts cannot be read: {named}; correct \
                 the rows, then replay these accounts"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_names_the_first_accounts_that_it_leaves_out_and_counts_the_rest() {
        let mut all = LeftOut::default();
        assert_eq!(all.to_text(), None);
        all.add(&AccountId::new("7"), 2, "too large");
        let mut lot = LeftOut::default();
        lot.add(&AccountId::new("7"), 3, "too large");
        (100..112).for_each(|n: u64| lot.add(&AccountId::new(n.to_string()), 1, "refused"));
        all.append(lot);
        let text = all.to_text().unwrap();
        assert!(text.contains("1 of account 108 (refused), "), "{text}");
        assert!(text.contains("5 of account 7 (too large), 3 of other accounts;"), "{text}");
        assert!(!text.contains("account 109"), "{text}");
    }
}
