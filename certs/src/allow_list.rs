//! Which nodes are let in: named once, or in files that are read again like certificates.

use std::{collections::BTreeSet, path::PathBuf};

use crate::{
    files::{LoadError, read},
    names::{AllowedNodes, is_node_name},
};

/// The only nodes of a cluster that are let in: those named here, and those in the files at the time of reading.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllowList {
    /// The cluster.
    pub cluster: String,
    /// The node that reads. A list without it is a mistake, and is not used.
    pub own: String,
    /// Nodes that are on the list whatever the files say.
    pub named: BTreeSet<String>,
    /// Files with more names, one per line; empty lines and what follows a `#` count for nothing. Each is at most
    /// [`FILE_BYTES_MAX`](crate::FILE_BYTES_MAX) long.
    pub files: Vec<PathBuf>,
}

/// Why a list cannot be used. What was in use before stays in use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllowListError {
    /// A file cannot be read.
    #[error("the list of allowed nodes is out of reach")]
    Load(#[from] LoadError),
    /// A line is no node name.
    #[error("the list of allowed nodes is damaged: `{name}` in {} is no node name; write one per line, of letters, digits, `.`, `_` and `-`", .file.display())]
    Name {
        /// The line.
        name: String,
        /// Where it is.
        file: PathBuf,
    },
    /// The reader is not on its own list.
    #[error("the list of allowed nodes lacks this node, {own}: add it, so that one list serves all nodes")]
    WithoutSelf {
        /// This node.
        own: String,
    },
}

impl AllowList {
    /// The list as it is now.
    ///
    /// # Errors
    /// When a file cannot be read or holds something that is no node name, or this node is on no list.
    pub fn read(&self) -> Result<AllowedNodes, AllowListError> {
        let mut nodes = self.named.clone();
        for file in &self.files {
            let bytes = read(file)?;
            for line in String::from_utf8_lossy(&bytes).lines() {
                let name = line.split('#').next().unwrap_or_default().trim();
                if name.is_empty() {
                    continue;
                }
                if !is_node_name(name) {
                    return Err(AllowListError::Name { name: name.to_owned(), file: file.clone() });
                }
                nodes.insert(name.to_owned());
            }
        }
        if !nodes.contains(&self.own) {
            return Err(AllowListError::WithoutSelf { own: self.own.clone() });
        }
        Ok(AllowedNodes { cluster: self.cluster.clone(), nodes })
    }
}
