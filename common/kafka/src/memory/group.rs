//! A cooperative consumer group as pure state: who should have what, and the one question a member has to answer.

use std::collections::{BTreeMap, BTreeSet};

use everlog_common::{TopicName, TopicPartition};

/// What the group waits for from a member. Nothing is read meanwhile, as with librdkafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    Assigned(Vec<TopicPartition>),
    Revoked {
        partitions: Vec<TopicPartition>,
        lost: bool,
    },
}

#[derive(Debug)]
pub(super) struct Member {
    topics: BTreeSet<TopicName>,
    /// Asked and not yet answered.
    open: Option<Question>,
    /// It was thrown out of these and does not know yet.
    lost: Option<Vec<TopicPartition>>,
    told_once: bool,
    deaf: bool,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    members: BTreeMap<u64, Member>,
    owners: BTreeMap<TopicPartition, u64>,
}

impl Group {
    pub(super) fn join(&mut self, id: u64, topics: &[TopicName]) {
        self.members.insert(
            id,
            Member {
                topics: topics.iter().cloned().collect(),
                open: None,
                lost: None,
                told_once: false,
                deaf: false,
            },
        );
    }

    /// These topics from now on; what that changes is asked as everything else is.
    pub(super) fn subscribe(&mut self, id: u64, topics: &[TopicName]) {
        if let Some(member) = self.members.get_mut(&id) {
            member.topics = topics.iter().cloned().collect();
        }
    }

    pub(super) fn leave(&mut self, id: u64) {
        self.members.remove(&id);
        self.owners.retain(|_, owner| *owner != id);
    }

    pub(super) fn members(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    pub(super) fn owned(&self, id: u64) -> Vec<TopicPartition> {
        self.owners
            .iter()
            .filter(|(_, owner)| **owner == id)
            .map(|(tp, _)| tp.clone())
            .collect()
    }

    pub(super) fn deafen(&mut self, id: u64, deaf: bool) {
        if let Some(member) = self.members.get_mut(&id) {
            member.deaf = deaf;
        }
    }

    /// Takes everything from a member at once; it learns of it with its next question.
    pub(super) fn expel(&mut self, id: u64) {
        let owned = self.owned(id);
        if let Some(member) = self.members.get_mut(&id) {
            member.open = None;
            member.lost.get_or_insert_default().extend(owned);
        }
        self.owners.retain(|_, owner| *owner != id);
    }

    pub(super) fn is_waiting(&self, id: u64) -> bool {
        self.members.get(&id).is_some_and(|m| m.open.is_some())
    }

    /// The next question for a member, if it has none open.
    pub(super) fn ask(&mut self, id: u64, partitions: &[TopicPartition]) -> Option<Question> {
        let target = self.target(partitions);
        let owned: BTreeSet<_> = self.owned(id).into_iter().collect();
        let member = self.members.get_mut(&id)?;
        if member.open.is_some() || member.deaf {
            return None;
        }
        if let Some(partitions) = member.lost.clone() {
            let question = Question::Revoked {
                partitions,
                lost: true,
            };
            member.open = Some(question.clone());
            return Some(question);
        }
        let mine: BTreeSet<_> = target
            .iter()
            .filter(|(_, owner)| **owner == id)
            .map(|(tp, _)| tp.clone())
            .collect();
        let revoked: Vec<_> = owned.difference(&mine).cloned().collect();
        let given: Vec<_> = mine
            .iter()
            .filter(|tp| !self.owners.contains_key(*tp))
            .cloned()
            .collect();
        let question = if !revoked.is_empty() {
            Question::Revoked {
                partitions: revoked,
                lost: false,
            }
        } else if !given.is_empty() || (!member.told_once && !member.topics.is_empty()) {
            for tp in &given {
                self.owners.insert(tp.clone(), id);
            }
            Question::Assigned(given)
        } else {
            return None;
        };
        member.told_once = true;
        member.open = Some(question.clone());
        Some(question)
    }

    pub(super) fn answer_assigned(&mut self, id: u64) {
        if let Some(member) = self.members.get_mut(&id)
            && matches!(member.open, Some(Question::Assigned(_)))
        {
            member.open = None;
        }
    }

    /// Returns what the answer took away.
    pub(super) fn answer_revoked(&mut self, id: u64) -> Vec<TopicPartition> {
        let Some(member) = self.members.get_mut(&id) else {
            return Vec::new();
        };
        match member.open.take() {
            Some(Question::Revoked { partitions, lost }) => {
                if lost {
                    member.lost = None;
                    member.told_once = false;
                } else {
                    for tp in &partitions {
                        self.owners.remove(tp);
                    }
                }
                partitions
            }
            other => {
                member.open = other;
                Vec::new()
            }
        }
    }

    /// Who should own what: as before where possible, then to whoever has the fewest, then evened out.
    fn target(&self, partitions: &[TopicPartition]) -> BTreeMap<TopicPartition, u64> {
        let wants = |id: u64, tp: &TopicPartition| {
            self.members
                .get(&id)
                .is_some_and(|m| m.lost.is_none() && m.topics.contains(&tp.topic))
        };
        let mut count: BTreeMap<u64, usize> = self.members.keys().map(|id| (*id, 0)).collect();
        let mut target = BTreeMap::new();
        for tp in partitions {
            let keeps = self.owners.get(tp).copied().filter(|id| wants(*id, tp));
            if let Some(id) = keeps {
                target.insert(tp.clone(), id);
                *count.entry(id).or_default() += 1;
            }
        }
        for tp in partitions {
            if target.contains_key(tp) {
                continue;
            }
            let fewest = count
                .iter()
                .filter(|(id, _)| wants(**id, tp))
                .min_by_key(|(id, n)| (**n, **id))
                .map(|(id, _)| *id);
            if let Some(id) = fewest {
                target.insert(tp.clone(), id);
                *count.entry(id).or_default() += 1;
            }
        }
        while let Some((tp, to)) = Self::uneven(&target, &count, &wants) {
            if let Some(from) = target.insert(tp, to) {
                *count.entry(from).or_default() -= 1;
            }
            *count.entry(to).or_default() += 1;
        }
        target
    }

    fn uneven(
        target: &BTreeMap<TopicPartition, u64>,
        count: &BTreeMap<u64, usize>,
        wants: &impl Fn(u64, &TopicPartition) -> bool,
    ) -> Option<(TopicPartition, u64)> {
        target.iter().rev().find_map(|(tp, owner)| {
            let (to, fewest) = count
                .iter()
                .filter(|(id, _)| wants(**id, tp))
                .min_by_key(|(id, n)| (**n, **id))?;
            (count.get(owner)? > &(fewest + 1)).then(|| (tp.clone(), *to))
        })
    }
}
