//! Python: what a run shows, what it leaves behind, and what nothing that it does can break.

use std::collections::BTreeMap;

use greenroom_agent::kernel::{Ending, KernelEvent};
use greenroom_protocol::{
    Language,
    limits::{IMAGE_BYTES, IMAGE_PIXELS, IMAGES, OUTPUT_HEAD, OUTPUT_TAIL},
};

use crate::support::{Bench, SOON, config, kernel, lives, test_venv, until};

#[tokio::test]
async fn state_is_kept_and_the_last_expression_is_shown() {
    for mut python in [Bench::python().await, Bench::plain_python().await] {
        assert_eq!(python.run("1+1").await.ended(Ending::Ok).result(), "2");
        python
            .run("x = 20\ndef double(n):\n    return 2 * n")
            .await
            .ended(Ending::Ok);
        assert_eq!(python.run("double(x) + 2").await.result(), "42");
        assert_eq!(python.run("_ + 1").await.result(), "43");
        assert_eq!(python.run("x;").await.result(), "nothing");
        assert_eq!(python.run("for x in range(3): x").await.result(), "nothing");
        let seen = python
            .run("print('a'); import sys; print('b', file=sys.stderr); 'c'")
            .await;
        assert_eq!(
            (&*seen.stdout, &*seen.stderr, seen.result()),
            ("a\n", "b\n", "'c'")
        );
        assert_eq!(
            python
                .run("import asyncio\nawait asyncio.sleep(0, 7)")
                .await
                .result(),
            "7"
        );
        assert_eq!(python.run("__name__").await.result(), "'__main__'");
        python
            .run("from __future__ import annotations")
            .await
            .ended(Ending::Ok);
        python.run("def later(n: Unknown): pass").await.ended(Ending::Ok);
    }
}

#[tokio::test]
async fn the_version_tells_which_python_it_is() {
    assert!(Bench::python().await.version.contains(", IPython "));
    let plain = Bench::plain_python().await.version.clone();
    assert!(
        plain.starts_with("Python 3.") && !plain.contains("IPython"),
        "{plain}"
    );
}

#[tokio::test]
async fn ipython_is_there() {
    let mut python = Bench::python().await;
    assert_eq!(python.run("!echo out; echo err >&2").await.stdout, "out\n");
    assert_eq!(
        python
            .run("lines = !printf 'a\\nb\\n'\nlist(lines)")
            .await
            .result(),
        "['a', 'b']"
    );
    assert_eq!(python.run("%%bash\necho $((6*7))").await.stdout, "42\n");
    assert_eq!(
        python.run("%%writefile note.txt\nhello").await.stdout,
        "Writing note.txt\n"
    );
    assert!(python.path("note.txt").exists());
    assert_eq!(
        python.run("pwd").await.result(),
        format!("'{}'", python.path("").display()).replace("/'", "'")
    );
    let seen = python.run("%no_such_magic").await.ended(Ending::Error);
    assert_eq!(
        (&*seen.error().name, &*seen.error().traceback),
        ("UsageError", "")
    );
    let seen = python.run("%run missing.py").await.ended(Ending::Error);
    assert!(seen.error().message.contains("not found"), "{seen:?}");
    python
        .run("%%writefile fails.py\nraise ValueError('inside')")
        .await
        .ended(Ending::Ok);
    let seen = python.run("%run fails.py").await.ended(Ending::Error);
    assert_eq!(seen.error().message, "inside");
    assert!(seen.error().traceback.contains("fails.py"), "{seen:?}");
}

#[tokio::test]
async fn an_exception_shows_the_code_of_the_user_and_nothing_of_ours() {
    for mut python in [Bench::python().await, Bench::plain_python().await] {
        python
            .run("def inner(n):\n    return n / 0")
            .await
            .ended(Ending::Ok);
        let seen = python.run("y = 5\ninner(1)").await.ended(Ending::Error);
        let error = seen.error();
        assert_eq!(
            (&*error.name, &*error.message),
            ("ZeroDivisionError", "division by zero")
        );
        for part in [
            "line 2, in <module>",
            "inner(1)",
            "line 2, in inner",
            "return n / 0",
        ] {
            assert!(error.traceback.contains(part), "{part}: {}", error.traceback);
        }
        for part in ["<greenroom>", "IPython", "\x1b"] {
            assert!(!error.traceback.contains(part), "{part}: {}", error.traceback);
        }
        assert_eq!(python.run("y").await.result(), "5", "what ran before it stays");

        let seen = python.run("def f(:").await.ended(Ending::Error);
        assert_eq!(seen.error().name, "SyntaxError");
        let seen = python.run("def f(): return f()\nf()").await.ended(Ending::Error);
        assert_eq!(seen.error().name, "RecursionError");
        let seen = python
            .run("class E(Exception):\n    def __str__(self): raise E\nraise E")
            .await;
        assert_eq!(seen.ended(Ending::Error).error().name, "E");
        let seen = python
            .run("raise ValueError('x' * 100_000)")
            .await
            .ended(Ending::Error);
        assert!(seen.error().message.len() < 5_000 && seen.error().traceback.len() < 20_000);
        let seen = python
            .run("raise ValueError('\\ud800')")
            .await
            .ended(Ending::Error);
        assert_eq!(seen.error().message, "\\ud800");
    }
}

#[tokio::test]
async fn frames_of_libraries_are_short_and_all_of_them_in_a_file() {
    for mut python in [Bench::python().await, Bench::plain_python().await] {
        let seen = python
            .run("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1/')")
            .await
            .ended(Ending::Error);
        let traceback = &seen.error().traceback;
        for part in [
            "urlopen('http://127.0.0.1:1/')",
            "urllib/request.py:",
            " frames …\n",
            "Connection refused",
        ] {
            assert!(traceback.contains(part), "{part}: {traceback}");
        }
        assert!(!traceback.contains("h.request("), "{traceback}");
        let file = std::fs::read_to_string(python.path(".greenroom/runs/run-1.traceback.txt")).unwrap();
        assert!(file.contains("h.request("), "{file}");
        let seen = python.run("1/0").await.ended(Ending::Error);
        assert!(!seen.error().traceback.contains("are shortened"), "{seen:?}");
        assert!(!python.path(".greenroom/runs/run-2.traceback.txt").exists());
    }
}

#[tokio::test]
async fn exit_is_a_result_and_the_process_lives() {
    for mut python in [Bench::python().await, Bench::plain_python().await] {
        python.run("x = 1").await;
        for code in ["import sys; sys.exit(3)", "exit(3)", "raise SystemExit(3)"] {
            let seen = python.run(code).await.ended(Ending::Error);
            assert_eq!(seen.error().name, "exit");
            assert!(seen.error().message.contains("status 3"), "{seen:?}");
        }
        python.run("import sys; sys.exit()").await.ended(Ending::Ok);
        python.run("quit()").await.ended(Ending::Ok);
        assert_eq!(python.run("x").await.result(), "1");
    }
}

#[tokio::test]
async fn reading_from_a_terminal_fails_at_once() {
    for mut python in [Bench::python().await, Bench::plain_python().await] {
        let seen = python.run("input('name? ')").await.ended(Ending::Error);
        assert_eq!(seen.error().name, "EOFError");
        assert!(seen.error().message.contains("no terminal"), "{seen:?}");
        assert_eq!(python.run("import sys; sys.stdin.read()").await.result(), "''");
        assert_eq!(
            python
                .run("import subprocess; subprocess.run('cat').returncode")
                .await
                .result(),
            "0"
        );
    }
}

#[tokio::test]
async fn long_results_are_cut_in_the_middle() {
    let mut python = Bench::python().await;
    let seen = python.run("'a' * 200_000 + 'z'").await;
    let result = seen.result();
    assert!(result.len() < 70_000 && result.starts_with("'aaa") && result.ends_with("az'"));
    assert!(result.contains("characters left out"));
}

#[tokio::test]
async fn rich_results_come_as_bundles() {
    let mut python = Bench::python().await;
    let seen = python
        .run("import pandas as pd\ndf = pd.DataFrame({'a': [1, 2]})\ndisplay(df)\ndf")
        .await;
    let (data, path) = &seen.displays[0];
    assert!(
        data["text/plain"].contains('a') && data["text/html"].contains("<table"),
        "{data:?}"
    );
    assert_eq!((seen.displays.len(), path), (1, &None));
    assert_eq!(seen.result(), "   a\n0  1\n1  2\n[2 rows × 1 columns] a: int64");
    let seen = python
        .run(
            "from IPython.display import HTML\nHTML('<table><tr><th>a</th></tr><tr><td>1</td></tr></table>')",
        )
        .await;
    assert_eq!(seen.result(), "| a |\n|---|\n| 1 |");
    let seen = python.run("display(1); display('x')").await;
    assert_eq!(seen.stdout, "1\n'x'\n", "plain text goes where print goes");
    let seen = python
        .run("from IPython.display import HTML\nfor n in range(100): display(HTML('<b>'))")
        .await;
    assert_eq!(seen.displays.len(), 64, "then they are printed");
    assert_eq!(seen.stdout.lines().count(), 36);
    let seen = python
        .run("print('before'); display(HTML('x')); print('after')")
        .await;
    let order: Vec<_> = seen
        .events
        .iter()
        .map(|event| matches!(event, KernelEvent::Display { .. }))
        .collect();
    assert_eq!(order, [false, true, false]);
}

#[tokio::test]
async fn figures_are_sent_once_and_closed() {
    let mut python = Bench::python().await;
    let seen = python
        .run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.title('t');")
        .await
        .ended(Ending::Ok);
    let (data, path) = &seen.displays[0];
    assert!(data["image/png"].len() > 1000);
    assert!(python.path(path.as_deref().unwrap()).exists());
    assert_eq!(seen.displays.len(), 1);
    assert_eq!(python.run("plt.get_fignums()").await.result(), "[]");
    assert_eq!(python.run("1").await.displays.len(), 0);

    let seen = python
        .run("plt.plot([1]); plt.show(); plt.plot([2]); plt.show()")
        .await;
    assert_eq!(
        (seen.displays.len(), &*seen.stderr),
        (2, ""),
        "show() ends a figure"
    );
    let seen = python.run("fig, ax = plt.subplots(); ax.plot([1]); fig").await;
    assert_eq!(
        seen.displays.len(),
        1,
        "a figure that is the result is not sent twice"
    );
    assert_eq!(
        python.run("display(fig)").await.displays.len(),
        1,
        "and can be shown again"
    );
    let seen = python.run("plt.plot([1]); 1/0").await.ended(Ending::Error);
    assert_eq!(
        seen.displays.len(),
        1,
        "what was drawn before the exception is shown"
    );
    let seen = python.run("%matplotlib inline\nplt.plot([1]);").await;
    assert_eq!((seen.displays.len(), &*seen.stderr), (1, ""));
}

#[tokio::test]
async fn images_keep_to_their_bounds() {
    let mut python = Bench::python().await;
    let seen = python
        .run("import matplotlib.pyplot as plt\nfor n in range(6):\n    plt.figure(); plt.plot([n])")
        .await
        .ended(Ending::Ok);
    assert_eq!((seen.displays.len(), seen.outcome.images_omitted), (IMAGES, 2));
    assert!(
        python.path(".greenroom/figures/run-1-6.png").exists(),
        "saved all the same"
    );

    let seen = python
        .run("import numpy as np\nplt.figure(figsize=(20, 10)); plt.imshow(np.random.rand(500, 1000));")
        .await
        .ended(Ending::Ok);
    let (data, path) = &seen.displays[0];
    let sent = data
        .iter()
        .find(|(kind, _)| kind.starts_with("image/"))
        .unwrap()
        .1;
    assert!(sent.len() <= IMAGE_BYTES * 4 / 3 + 4, "{}", sent.len());
    let saved = image::open(python.path(path.as_deref().unwrap())).unwrap();
    assert!(saved.width() > IMAGE_PIXELS, "the file has it as it was drawn");
}

#[tokio::test]
async fn what_is_no_image_is_not_sent_as_one() {
    let mut python = Bench::python().await;
    let seen = python
        .run("from IPython.display import publish_display_data as p\np({'image/png': b'\\x89PNG nonsense', 'text/plain': 't'})")
        .await
        .ended(Ending::Ok);
    let (data, path) = &seen.displays[0];
    assert_eq!(data.keys().collect::<Vec<_>>(), ["text/plain"]);
    assert!(path.is_some());
}

#[tokio::test]
async fn something_is_said_of_each_display() {
    let mut python = Bench::python().await;
    let seen = python
        .run("from IPython.display import HTML\nfor n in range(14):\n    display(HTML('x' * 100_000))")
        .await
        .ended(Ending::Ok);
    assert_eq!(seen.displays.len(), 14);
    let whole =
        |data: &BTreeMap<String, String>| data.get("text/html").is_some_and(|html| html.len() == 100_000);
    let (first, last) = (&seen.displays[0].0, &seen.displays[13].0);
    assert!(whole(first) && !whole(last), "{last:?}");
    let said = &last["text/plain"];
    assert!(
        said.starts_with("xxx") && said.len() < 400 && said.contains("1024 KiB"),
        "{said}"
    );
}

#[tokio::test]
async fn nobody_waits_for_what_lies_in_the_place_of_an_image() {
    let mut python = Bench::python().await;
    let code = "import os\nos.makedirs('.greenroom/figures')\nos.mkfifo('.greenroom/figures/run-1-1.png')\n\
                shown = b'{\"display\": {\"data\": {}, \"image\": {\"number\": 1, \"ending\": \"png\"}}}'\n\
                for _ in range(100): os.write(3, shown + b'\\n')";
    let seen = python.run(code).await.ended(Ending::Ok);
    assert_eq!(seen.outcome.images_omitted as usize, 100 - IMAGES);
}

#[tokio::test]
async fn subprocesses_and_native_code_are_seen_in_order() {
    let mut python = Bench::python().await;
    let code = "import os, subprocess, ctypes\nprint('1')\nos.system('echo 2')\nprint('3')\nsubprocess.run(['echo', '4'])\n\
                os.write(1, b'5\\n')\nctypes.CDLL(None).puts(b'6');";
    assert_eq!(python.run(code).await.stdout, "1\n2\n3\n4\n5\n6\n");
    let many = "for n in range(1000): print(n)\nos.system('echo sub')\nprint('end')";
    let seen = python.run(many).await;
    assert!(
        seen.stdout.ends_with("999\nsub\nend\n"),
        "{}",
        &seen.stdout[seen.stdout.len() - 30..]
    );
}

#[tokio::test]
async fn closed_and_replaced_streams_are_there_again_in_the_next_run() {
    for mut python in [Bench::python().await, Bench::plain_python().await] {
        for code in [
            "import sys, os",
            "sys.stdout.close()",
            "os.close(1)",
            "os.close(1); os.close(2)",
            "os.closerange(1, 3)",
            "os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
            "sys.stdout = open('/dev/null', 'w')",
            "sys.stdout = None",
            "sys.stdout.detach();",
            "del sys.stdout",
        ] {
            let seen = python.run(code).await;
            assert_ne!(seen.outcome.ending, Ending::Died, "{code}: {seen:?}");
            let seen = python
                .run("print('here'); os.system('echo there')")
                .await
                .ended(Ending::Ok);
            assert_eq!(seen.stdout, "here\nthere\n", "after {code}");
        }
    }
}

#[tokio::test]
async fn what_arrives_between_runs_is_late() {
    let mut python = Bench::python().await;
    let code = "import threading, time, os\ndef f():\n    while not os.path.exists('go'): time.sleep(0.01)\n    print('from the thread', flush=True); open('done', 'w')\n\
                threading.Thread(target=f).start()";
    let seen = python.run(code).await.ended(Ending::Ok);
    assert_eq!((&*seen.late, &*seen.stdout), ("", ""));
    std::fs::write(python.path("go"), "").unwrap();
    let done = python.path("done");
    // Whoever owns a kernel waits for its death between runs, and so do we.
    tokio::select! {
        error = python.kernel.died() => panic!("{error:?}"),
        () = until("the thread printed", || done.exists()) => {}
    }
    let seen = python.run("print('mine')").await;
    assert_eq!((&*seen.late, &*seen.stdout), ("from the thread\n", "mine\n"));
}

#[tokio::test]
async fn forked_children_are_no_kernels() {
    let mut python = Bench::python().await;
    let seen = python
        .run("import os\npid = os.fork()\nprint('child' if pid == 0 else os.waitpid(pid, 0)[1])")
        .await;
    assert_eq!(seen.stdout, "child\n0\n");
    let seen = python
        .run("pid = os.fork()\nif pid == 0: raise ValueError('in the child')\nos.waitpid(pid, 0)[1] >> 8")
        .await;
    assert_eq!(seen.ended(Ending::Ok).result(), "1");
    let seen = python.run("print('once', end=''); from multiprocessing import Pool\nwith Pool(2) as pool: print(pool.map(abs, [-1, -2]))").await;
    assert_eq!(seen.ended(Ending::Ok).stdout, "once[1, 2]\n");
    // One that lingers and holds every descriptor open does not hold the run.
    let seen = python
        .run("pid = os.fork()\nif pid == 0:\n    import time; time.sleep(1000)\npid")
        .await;
    let child = seen.ended(Ending::Ok).result().to_owned();
    assert_eq!(python.run("1").await.result(), "1");
    assert!(lives(&child));
    python.control().kill();
    until("the child is gone with its kernel", || !lives(&child)).await;
}

#[tokio::test]
async fn every_death_is_told_as_what_it_was() {
    let mut python = Bench::python().await;
    for (code, name, part, exit_code) in [
        (
            "import os; print('said'); os._exit(7)",
            "exit",
            "exit code 7",
            Some(7),
        ),
        (
            "import os; print('said'); os.kill(os.getpid(), 9)",
            "killed",
            "signal 9",
            None,
        ),
        (
            "import ctypes; print('said'); ctypes.string_at(0)",
            "signal",
            "SIGSEGV",
            None,
        ),
        ("import os; print('said'); os.abort()", "signal", "SIGABRT", None),
        (
            "import os; print('said'); os.execvp('true', ['true'])",
            "exit",
            "exit code 0",
            Some(0),
        ),
    ] {
        let seen = python.run(code).await.ended(Ending::Died);
        assert_eq!(seen.error().name, name, "{code}");
        assert!(seen.error().message.contains(part), "{code}: {:?}", seen.error());
        assert_eq!(
            (seen.outcome.exit_code, &*seen.stdout),
            (exit_code, "said\n"),
            "{code}"
        );
        python.restart().await;
        assert_eq!(python.run("1").await.ended(Ending::Ok).result(), "1");
    }
    let seen = python.run("import ctypes; ctypes.string_at(0)").await;
    assert!(
        seen.stderr.contains("Segmentation fault") && seen.stderr.contains("<cell 2>"),
        "{}",
        seen.stderr
    );
}

#[tokio::test]
async fn code_that_closes_the_line_loses_its_kernel_and_nothing_else() {
    let mut python = Bench::python().await;
    for code in [
        "import os; os.closerange(3, 100)",
        "import os; os.write(3, b'nonsense\\n')",
    ] {
        let seen = python.run(code).await.ended(Ending::Died);
        assert_eq!(seen.error().name, "kernel_lost", "{code}: {:?}", seen.error());
        python.restart().await;
    }
}

#[tokio::test]
async fn a_death_between_runs_is_noticed() {
    let mut python = Bench::python().await;
    let code = "import threading, time, os\n\
                def wait():\n    while not os.path.exists('go'): time.sleep(0.01)\n    os._exit(9)\n\
                threading.Thread(target=wait).start()";
    python.run(code).await.ended(Ending::Ok);
    std::fs::write(python.path("go"), "").unwrap();
    let error = python.died().await;
    assert_eq!(error.name, "exit");
    assert!(error.message.contains("exit code 9"), "{error:?}");
    python.restart().await;
    assert_eq!(python.run("1").await.result(), "1");
}

#[tokio::test]
async fn an_interrupt_stops_what_runs_and_keeps_the_state() {
    let mut python = Bench::python().await;
    python
        .run("kept = 'kept'; import time, subprocess, asyncio")
        .await;
    for code in [
        "print('go'); time.sleep(1000)",
        "print('go')\nwhile True: pass",
        "print('go'); subprocess.run(['sleep', '1000'])",
        "print('go')\n!sleep 1000",
        "print('go')\nawait asyncio.sleep(1000)",
        "print('go')\nclass Slow:\n    def __repr__(self): time.sleep(1000)\nSlow()",
    ] {
        let seen = python
            .run_and(code, |_, control| control.interrupt())
            .await
            .ended(Ending::Error);
        assert_eq!(
            seen.error().name,
            "KeyboardInterrupt",
            "{code}: {:?}",
            seen.error()
        );
        assert_eq!(python.run("kept").await.result(), "'kept'", "after {code}");
    }
    python.control().interrupt();
    assert_eq!(
        python.run("kept").await.result(),
        "'kept'",
        "between runs it interrupts nothing"
    );
}

#[tokio::test]
async fn an_interrupt_before_the_first_line_is_not_lost() {
    let mut python = Bench::python().await;
    for n in 0..50 {
        let seen = python
            .run_interrupted_after(n % 5, "import time; time.sleep(1000)")
            .await
            .ended(Ending::Error);
        assert_eq!(seen.error().name, "KeyboardInterrupt");
    }
    assert_eq!(python.run("'unharmed'").await.result(), "'unharmed'");
}

#[tokio::test]
async fn code_that_ignores_interrupts_is_killed_with_all_that_descends_from_it() {
    let mut python = Bench::python().await;
    let code = "import os, signal, subprocess, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n\
                near = subprocess.Popen(['sleep', '1000'])\n\
                far = subprocess.Popen(['setsid', 'sh', '-c', 'sleep 1000 & echo $! > orphan; echo $$ > far; wait'])\n\
                bare = subprocess.Popen(['env', '-i', 'setsid', 'sleep', '1000'])\n\
                while not (os.path.exists('far') and open('far').read()): time.sleep(0.01)\n\
                print(near.pid, bare.pid, open('orphan').read().strip(), open('far').read().strip(), flush=True)\n\
                while True: time.sleep(1000)";
    let mut told = String::new();
    let seen = python
        .run_and(code, |event, control| {
            if let KernelEvent::Output { text, .. } = event {
                told.push_str(text);
                control.interrupt();
                control.kill();
            }
        })
        .await
        .ended(Ending::Died);
    assert_eq!(seen.error().name, "killed");
    let pids: Vec<_> = told.split_whitespace().collect();
    assert_eq!(pids.len(), 4, "{told}");
    for pid in pids {
        until("all are gone", || !lives(pid)).await;
    }
    python.restart().await;
    assert_eq!(python.run("1").await.result(), "1");
}

#[tokio::test]
async fn a_restart_ends_what_a_dead_kernel_left_behind() {
    let mut python = Bench::python().await;
    let seen = python
        .run("import subprocess, os\nprint(subprocess.Popen(['setsid', 'sleep', '1000']).pid)\nos._exit(0)")
        .await
        .ended(Ending::Died);
    assert!(lives(&seen.stdout));
    python.restart().await;
    assert!(!lives(&seen.stdout));
}

#[tokio::test]
async fn output_without_end_is_bounded_and_spilled() {
    let mut python = Bench::python().await;
    let seen = python
        .run("print('start')\nfor n in range(100_000): print(n)")
        .await
        .ended(Ending::Ok);
    let all: String = std::iter::once("start".to_owned())
        .chain((0..100_000).map(|n| n.to_string()))
        .map(|l| l + "\n")
        .collect();
    let summary = &seen.outcome.stdout;
    assert_eq!(summary.bytes, all.len() as u64);
    assert_eq!(summary.omitted, (all.len() - OUTPUT_HEAD - OUTPUT_TAIL) as u64);
    assert_eq!(
        seen.stdout,
        format!("{}{}", &all[..OUTPUT_HEAD], &all[all.len() - OUTPUT_TAIL..])
    );
    let spilled = std::fs::read_to_string(python.path(summary.path.as_deref().unwrap())).unwrap();
    assert!(spilled == all);

    let seen = python
        .run_and("while True: print('x' * 100)", |event, control| {
            if let KernelEvent::Output { .. } = event {
                control.interrupt();
            }
        })
        .await
        .ended(Ending::Error);
    assert_eq!(seen.error().name, "KeyboardInterrupt");
}

#[tokio::test]
async fn a_spill_has_a_limit() {
    let mut python = Bench::start(Language::Python, &test_venv(), |config| {
        config.spill_bytes = 200_000
    })
    .await;
    let seen = python.run("print('x' * 1_000_000)").await.ended(Ending::Ok);
    let spilled = python.path(seen.outcome.stdout.path.as_deref().unwrap());
    assert_eq!(std::fs::metadata(spilled).unwrap().len(), 200_000);
    assert_eq!(seen.outcome.stdout.bytes, 1_000_001);
    // A folder that is not one: the run says what it can.
    python
        .run("import shutil; shutil.rmtree('.greenroom'); open('.greenroom', 'w');")
        .await
        .ended(Ending::Ok);
    let seen = python.run("print('x' * 1_000_000)").await.ended(Ending::Ok);
    assert_eq!(
        (seen.outcome.stdout.bytes, seen.outcome.stdout.path),
        (1_000_001, None)
    );
}

#[tokio::test]
async fn bytes_that_are_no_text_are_escaped() {
    let mut python = Bench::python().await;
    let seen = python
        .run("import os\nos.write(1, b'\\xff\\x00\\x1b[31mred\\x1b[0m \\xc3\\xa4\\n');")
        .await;
    assert_eq!(seen.stdout, "\\xff\\x00red ä\n");
    assert_eq!(seen.outcome.stdout.bytes, 18);
    assert_eq!(
        python.run("print('\\ud800')").await.ended(Ending::Ok).stdout,
        "\\ud800\n"
    );
}

#[tokio::test]
async fn output_is_seen_while_the_run_goes_on() {
    let mut python = Bench::python().await;
    let mut seen_first = false;
    let code =
        "import os, time\nprint('first')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('second')";
    let go = python.path("go");
    let seen = python
        .run_and(code, |event, _| {
            if let KernelEvent::Output { text, .. } = event
                && text == "first\n"
            {
                seen_first = true;
                std::fs::write(&go, "").unwrap();
            }
        })
        .await
        .ended(Ending::Ok);
    assert!(seen_first);
    assert_eq!(seen.stdout, "first\nsecond\n");
    // Buffered, since there was much: it is flushed while the run goes on.
    let go = python.path("go-on");
    let code = "for n in range(1000): print('.', end='\\n')\nprint('last')\nwhile not os.path.exists('go-on'): time.sleep(0.01)";
    python
        .run_and(code, |event, _| {
            if let KernelEvent::Output { text, .. } = event
                && text.ends_with("last\n")
            {
                std::fs::write(&go, "").unwrap();
            }
        })
        .await
        .ended(Ending::Ok);
}

#[tokio::test]
async fn preloads_are_there_and_a_missing_one_is_told() {
    let mut python = Bench::start(Language::Python, &test_venv(), |config| {
        config.preload = vec!["json".into(), "matplotlib.pyplot".into()];
    })
    .await;
    let seen = python.run("import sys; 'matplotlib.pyplot' in sys.modules").await;
    assert_eq!(seen.result(), "True");
    let seen = python
        .run("import matplotlib.pyplot as plt; plt.plot([1]); plt.show()")
        .await;
    assert_eq!(seen.displays.len(), 1);

    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.preload = vec!["no_such_module".into()];
    let mut kernel = kernel(Language::Python, &config, &test_venv());
    let error = tokio::time::timeout(SOON, kernel.start())
        .await
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(error.contains("no_such_module"), "{error}");
}

#[tokio::test]
async fn an_image_without_python_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let quarters = crate::support::quarters(&config, dir.path()).with_path("/nonexistent");
    for mut kernel in greenroom_agent::kernel::all(&config, quarters) {
        let error = kernel.start().await.unwrap_err().to_string();
        assert!(error.contains("not in this image"), "{error}");
    }
}

#[tokio::test]
async fn a_module_of_the_work_directory_cannot_break_the_start() {
    let mut python = Bench::python().await;
    for name in ["json", "ast", "matplotlib", "token"] {
        std::fs::write(python.path(&format!("{name}.py")), "raise RuntimeError('mine')").unwrap();
    }
    python.run("import os; os._exit(0)").await.ended(Ending::Died);
    python.restart().await;
    assert_eq!(python.run("1").await.result(), "1");
}

#[tokio::test]
async fn too_much_memory_is_an_error_that_keeps_the_state() {
    let mut python = Bench::python().await;
    python.run("kept = 'kept'").await.ended(Ending::Ok);
    let seen = python.run("x = bytearray(1 << 46)").await.ended(Ending::Error);
    assert_eq!(seen.error().name, "MemoryError");
    assert!(seen.error().message.contains("variables are kept"), "{seen:?}");
    assert_eq!(python.run("kept").await.result(), "'kept'");
    let limit = "import resource; total = int(open('/proc/meminfo').read().split()[1]) << 10\n\
                 total // 2 < resource.getrlimit(resource.RLIMIT_AS)[0] < total";
    assert_eq!(python.run(limit).await.result(), "True");
}
