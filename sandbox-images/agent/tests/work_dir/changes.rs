//! What a run changed in the work directory.

use std::{fs, os::unix::fs::symlink};

use greenroom_agent::files::{Files, Mark};
use greenroom_protocol::FileChangeKind::{self, Created, Deleted, Modified};

use crate::desk::{Desk, desks, save};

async fn changes(files: &Files, mark: &Mark) -> Vec<(String, u64, FileChangeKind)> {
    let changes = files.changes_since(mark).await;
    changes
        .into_iter()
        .map(|change| (change.path, change.size, change.change))
        .collect()
}

fn change(path: &str, size: u64, kind: FileChangeKind) -> (String, u64, FileChangeKind) {
    (path.to_owned(), size, kind)
}

#[tokio::test]
async fn a_run_that_touches_nothing_changes_nothing() {
    for Desk { files, dir, .. } in desks() {
        fs::write(dir.path().join("there"), "x").unwrap();
        let mark = files.mark().await;
        fs::read(dir.path().join("there")).unwrap();
        assert_eq!(changes(&files, &mark).await, []);
    }
}

#[tokio::test]
async fn files_are_created_modified_and_deleted() {
    for Desk { files, dir, .. } in desks() {
        // Once without anything between two runs, once more with: marks follow each other.
        for round in 0..3 {
            let at = |path: &str| dir.path().join(format!("{round}/{path}"));
            let path = |path: &str| format!("{round}/{path}");
            fs::create_dir_all(at("sub")).unwrap();
            for file in ["same", "gone", "rewritten", "replaced", "sub/deep"] {
                fs::write(at(file), "old").unwrap();
            }
            let mark = files.mark().await;
            fs::write(at("made"), "12345").unwrap();
            fs::write(at("rewritten"), "new").unwrap();
            fs::write(at("tmp"), "replaced").unwrap();
            fs::rename(at("tmp"), at("replaced")).unwrap();
            fs::remove_file(at("gone")).unwrap();
            fs::write(at("sub/deep"), "deeper").unwrap();
            fs::create_dir_all(at("sub/new/newer")).unwrap();
            fs::write(at("sub/new/newer/file"), "x").unwrap();
            fs::write(at("fleeting"), "x").unwrap();
            fs::remove_file(at("fleeting")).unwrap();
            symlink("same", at("link")).unwrap();
            let expected = [
                change(&path("gone"), 0, Deleted),
                change(&path("made"), 5, Created),
                change(&path("replaced"), 8, Modified),
                change(&path("rewritten"), 3, Modified),
                change(&path("sub/deep"), 6, Modified),
                change(&path("sub/new/newer/file"), 1, Created),
            ];
            assert_eq!(changes(&files, &mark).await, expected);
            assert_eq!(
                changes(&files, &mark).await,
                expected,
                "asking does not use it up"
            );
            let next = files.mark().await;
            assert_eq!(changes(&files, &next).await, []);
        }
    }
}

#[tokio::test]
async fn what_happens_between_runs_belongs_to_none() {
    for Desk { files, dir, .. } in desks() {
        let before = files.mark().await;
        save(&files, "uploaded", "x").await.unwrap();
        let mark = files.mark().await;
        fs::write(dir.path().join("made"), "x").unwrap();
        assert_eq!(changes(&files, &mark).await, [change("made", 1, Created)]);
        // A run of another kernel that has been at work all the while sees both.
        let both = [change("made", 1, Created), change("uploaded", 1, Created)];
        assert_eq!(changes(&files, &before).await, both);
    }
}

#[tokio::test]
async fn folders_that_move_or_go_take_their_files_along() {
    for Desk { files, dir, .. } in desks() {
        let at = |path: &str| dir.path().join(path);
        for folder in ["a", "b/c"] {
            fs::create_dir_all(at(folder)).unwrap();
            fs::write(at(folder).join("file"), "x").unwrap();
        }
        let mark = files.mark().await;
        fs::rename(at("a"), at("moved")).unwrap();
        fs::remove_dir_all(at("b")).unwrap();
        let expected = [
            change("a/file", 0, Deleted),
            change("b/c/file", 0, Deleted),
            change("moved/file", 1, Created),
        ];
        assert_eq!(changes(&files, &mark).await, expected);

        // Another folder under a name that is known, and the watch follows it.
        let mark = files.mark().await;
        fs::create_dir(at("other")).unwrap();
        fs::write(at("other/file"), "xyz").unwrap();
        fs::rename(at("moved"), at("away")).unwrap();
        fs::rename(at("other"), at("moved")).unwrap();
        let expected = [change("away/file", 1, Created), change("moved/file", 3, Modified)];
        assert_eq!(changes(&files, &mark).await, expected);
        let mark = files.mark().await;
        fs::write(at("moved/more"), "").unwrap();
        fs::write(at("away/more"), "").unwrap();
        let expected = [change("away/more", 0, Created), change("moved/more", 0, Created)];
        assert_eq!(changes(&files, &mark).await, expected);
    }
}

#[tokio::test]
async fn the_agents_own_files_are_no_news() {
    for Desk { files, .. } in desks() {
        save(&files, ".greenroom/earlier", "").await.unwrap();
        let mark = files.mark().await;
        save(&files, ".greenroom/runs/1/stdout", "x").await.unwrap();
        assert_eq!(changes(&files, &mark).await, []);
        save(&files, "sub/uploaded", "x").await.unwrap();
        assert_eq!(changes(&files, &mark).await, [change("sub/uploaded", 1, Created)]);
    }
}

#[tokio::test]
async fn a_folder_that_does_not_fit_is_left_out_and_the_others_are_not() {
    for Desk { files, dir, .. } in desks() {
        fs::create_dir(dir.path().join("small")).unwrap();
        let mark = files.mark().await;
        fs::create_dir(dir.path().join("large")).unwrap();
        for n in 0..1100 {
            fs::write(dir.path().join(format!("large/{n}")), "").unwrap();
        }
        fs::write(dir.path().join("small/file"), "").unwrap();
        assert_eq!(changes(&files, &mark).await, [change("small/file", 0, Created)]);
        let mark = files.mark().await;
        fs::remove_dir_all(dir.path().join("large")).unwrap();
        fs::write(dir.path().join("root"), "").unwrap();
        assert_eq!(changes(&files, &mark).await, [change("root", 0, Created)]);
    }
}

#[tokio::test]
async fn no_more_than_fifty_are_named() {
    for Desk { files, dir, .. } in desks() {
        let mark = files.mark().await;
        for n in 0..60 {
            fs::write(dir.path().join(format!("f{n:02}")), "").unwrap();
        }
        let changes = changes(&files, &mark).await;
        assert_eq!(changes.len(), 50);
        assert_eq!(changes[49], change("f49", 0, Created));
    }
}

#[tokio::test]
async fn a_killed_files_process_makes_marks_worthless_and_nothing_else() {
    let desk = Desk::guest();
    let Desk { files, dir, .. } = &desk;
    let mark = files.mark().await;
    fs::write(dir.path().join("a"), "x").unwrap();
    desk.kill_files_process();
    assert_eq!(changes(files, &mark).await, []);
    let mark = files.mark().await;
    fs::write(dir.path().join("b"), "x").unwrap();
    assert_eq!(changes(files, &mark).await, [change("b", 1, Created)]);
}
