//! As whom an image's own program runs: `USER` as images write it, looked up in the image's files.

use std::fs;

/// A user and a group by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// Reads `name`, `uid`, `name:group`, `uid:gid` and so on, by the image's `/etc/passwd` and `/etc/group`. Nothing is
/// root, as it is for container engines.
///
/// # Errors
/// The image knows no such user or group.
pub fn ids(user: &str) -> Result<Ids, String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    look_up(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn look_up(user: &str, passwd: &str, group: &str) -> Result<Ids, String> {
    let (user, wanted) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let known = entry(passwd, user);
    let uid = match (user, known) {
        ("", _) => 0,
        (_, Some(fields)) => {
            number(fields, 2).ok_or_else(|| format!("/etc/passwd gives {user:?} no number"))?
        }
        (_, None) => user
            .parse()
            .map_err(|_| format!("the image has no user {user:?}"))?,
    };
    let gid = match wanted {
        Some(group_name) => entry(group, group_name)
            .and_then(|fields| number(fields, 2))
            .or_else(|| group_name.parse().ok())
            .ok_or_else(|| format!("the image has no group {group_name:?}"))?,
        // A number that the image does not know has root's group, as it has for container engines.
        None => known
            .or_else(|| entry(passwd, &uid.to_string()))
            .and_then(|fields| number(fields, 3))
            .unwrap_or(0),
    };
    Ok(Ids { uid, gid })
}

/// The line of a name, or of a number in the third field.
fn entry<'a>(file: &'a str, name: &str) -> Option<&'a str> {
    let by = |field: usize| {
        file.lines()
            .find(|line| !name.is_empty() && line.split(':').nth(field) == Some(name))
    };
    by(0).or_else(|| by(2))
}

fn number(line: &str, field: usize) -> Option<u32> {
    line.split(':').nth(field)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_as_container_engines_read_them() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nodd\nbad:x:x:y\n";
        let group = "root:x:0:\nstaff:x:50:app\n";
        for (user, expected) in [
            ("", Some((0, 0))),
            ("root", Some((0, 0))),
            ("app", Some((1000, 1001))),
            ("1000", Some((1000, 1001))),
            ("app:staff", Some((1000, 50))),
            ("app:50", Some((1000, 50))),
            ("7:8", Some((7, 8))),
            ("7", Some((7, 0))),
            (":staff", Some((0, 50))),
            ("nobody-here", None),
            ("app:nobody-here", None),
            ("bad", None),
            ("-1", None),
        ] {
            let found = look_up(user, passwd, group).ok();
            assert_eq!(found.map(|ids| (ids.uid, ids.gid)), expected, "{user}");
        }
        assert_eq!(
            look_up("0", "", "").ok(),
            Some(Ids { uid: 0, gid: 0 }),
            "an image without files"
        );
    }
}
