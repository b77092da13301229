//! What an image says that it holds.

use serde::{Deserialize, Serialize};

/// Where an image keeps its list: a JSON array of [`Package`]s. An image need not have one.
pub const PACKAGES_PATH: &str = "/opt/greenroom/packages.json";

/// `GET /packages`: the packages of the image, as its list names them; none where it has no list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packages {
    /// By kind and name.
    pub packages: Vec<Package>,
}

/// One package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Where it comes from: `python`, `r`, `debian`.
    pub kind: String,
    /// Its name there.
    pub name: String,
    /// Its version.
    pub version: String,
}
