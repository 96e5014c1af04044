//! The documentation: its links, its table of contents, and the pages that the code writes.

mod api;
mod links;
mod templates;
