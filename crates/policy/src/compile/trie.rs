//! A byte trie with compressed edges: all prefixes of a path in one walk along it.

use crate::turns;

/// Maps prefixes and exact texts to ascending numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Trie {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// The bytes between the parent and here.
    edge: Box<[u8]>,
    /// By the first byte of their edge, ascending.
    children: Vec<(u8, u32)>,
    exact: Vec<u32>,
    prefix: Vec<u32>,
}

impl Trie {
    pub(super) fn insert_exact(&mut self, text: &str, number: u32) {
        let at = self.node_for(text.as_bytes());
        push(&mut self.nodes[at].exact, number);
    }

    pub(super) fn insert_prefix(&mut self, text: &str, number: u32) {
        let at = self.node_for(text.as_bytes());
        push(&mut self.nodes[at].prefix, number);
    }

    pub(super) fn free(self) {
        turns::free(self.nodes);
    }

    /// Calls `found` with the numbers of every prefix of `text`, and those of `text` itself.
    pub(super) fn walk(&self, text: &str, found: &mut impl FnMut(&[u32])) {
        let mut rest = text.as_bytes();
        let Some(mut node) = self.nodes.first() else { return };
        loop {
            if !node.prefix.is_empty() {
                found(&node.prefix);
            }
            let Some(&first) = rest.first() else {
                if !node.exact.is_empty() {
                    found(&node.exact);
                }
                return;
            };
            let Ok(child) = node.children.binary_search_by_key(&first, |(byte, _)| *byte) else {
                return;
            };
            node = &self.nodes[node.children[child].1 as usize];
            let Some(after) = rest.strip_prefix(&*node.edge) else {
                return;
            };
            rest = after;
        }
    }

    /// Calls `found` with every list of numbers.
    pub(super) fn walk_all(&self, found: &mut impl FnMut(&[u32])) {
        for node in &self.nodes {
            found(&node.exact);
            found(&node.prefix);
        }
    }

    fn node_for(&mut self, mut text: &[u8]) -> usize {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut at = 0;
        while let Some(&first) = text.first() {
            match self.nodes[at].children.binary_search_by_key(&first, |(byte, _)| *byte) {
                Err(slot) => {
                    let leaf = self.add(Node {
                        edge: text.into(),
                        ..Node::default()
                    });
                    self.nodes[at].children.insert(slot, (first, leaf));
                    return leaf as usize;
                }
                Ok(slot) => {
                    let child = self.nodes[at].children[slot].1 as usize;
                    let shared = self.nodes[child]
                        .edge
                        .iter()
                        .zip(text)
                        .take_while(|(a, b)| a == b)
                        .count();
                    if shared < self.nodes[child].edge.len() {
                        self.split(child, shared);
                    }
                    text = &text[shared..];
                    at = child;
                }
            }
        }
        at
    }

    /// Cuts a node's edge: the node keeps the first part, a new child takes the rest and everything below.
    fn split(&mut self, at: usize, shared: usize) {
        let (head, tail) = self.nodes[at].edge.split_at(shared);
        let (head, tail): (Box<[u8]>, Box<[u8]>) = (head.into(), tail.into());
        let first = tail[0];
        let lower = Node {
            edge: tail,
            ..std::mem::take(&mut self.nodes[at])
        };
        let lower = self.add(lower);
        self.nodes[at] = Node {
            edge: head,
            children: vec![(first, lower)],
            ..Node::default()
        };
    }

    fn add(&mut self, node: Node) -> u32 {
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
    }
}

fn push(numbers: &mut Vec<u32>, number: u32) {
    if numbers.last() != Some(&number) {
        numbers.push(number);
    }
}
