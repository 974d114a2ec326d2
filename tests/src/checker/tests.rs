//! see next commit
