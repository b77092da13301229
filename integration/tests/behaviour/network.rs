//! There is no network: quick and plain answers, and packages from a file.

use crate::case::{Group, bash, python};

/// A wheel of one module, made without a network.
const WHEEL: &str = "\
import zipfile
name = 'greeting-1.0-py3-none-any.whl'
info = 'greeting-1.0.dist-info/'
with zipfile.ZipFile(name, 'w') as wheel:
    wheel.writestr('greeting.py', 'def hello(): return \"hello from a wheel\"\\n')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: greeting\\nVersion: 1.0\\nRequires-Dist: numpy\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', 'greeting.py,,\\n' + info + 'METADATA,,\\n' + info + 'WHEEL,,\\n' + info + 'RECORD,,\\n')
";

const NO_NETWORK: &str = "this sandbox has no network";
/// What pip says where it tries once more, for nothing.
const RETRIES: &str = "Retrying";

pub(crate) fn group() -> Group {
    Group {
        name: "network",
        cases: vec![
            bash("pip", "pip install nosuchpackage").ends("error").says(NO_NETWORK).says("upload a wheel").never(RETRIES),
            bash("pip, its end cut off", "pip install -q nosuchpackage 2>&1 | tail -1").says(NO_NETWORK),
            python("pip in a cell", "!pip install nosuchpackage").says(NO_NETWORK).never(RETRIES),
            python("the magic of pip", "%pip install nosuchpackage").ends("ok|error").says(NO_NETWORK).never(RETRIES),
            python("a module that is not there", "import nosuchmodule").ends("error").says("No module named 'nosuchmodule'").says(NO_NETWORK),
            python("requests", "import requests\nrequests.get('https://example.com')").ends("error").says("ConnectionError").says(NO_NETWORK),
            python("urllib", "import urllib.request\nurllib.request.urlopen('http://example.com')").ends("error").says(NO_NETWORK),
            python("a frame from the web", "import pandas as pd\npd.read_csv('https://example.com/a.csv')").ends("error").says(NO_NETWORK),
            python("a bare socket", "import socket\nsocket.create_connection(('1.1.1.1', 443), timeout=5)").ends("error").says(NO_NETWORK),
            python("the metadata of a cloud", "socket.create_connection(('169.254.169.254', 80), timeout=5)").ends("error").says("Network is unreachable"),
            bash("curl", "curl -sS https://example.com").ends("error").says(NO_NETWORK),
            bash("git", "git clone https://example.com/a.git").ends("error").says(NO_NETWORK),
            bash("apt", "apt-get install -y cowsay").ends("error").says(NO_NETWORK),
            bash("npm", "npm install left-pad").ends("error").says(NO_NETWORK),
            python("the loopback is there", "s = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(s.getsockname()).close(); 'reached'").gives("'reached'"),
            python("a wheel from a file", WHEEL).says("greeting-1.0-py3-none-any.whl"),
            bash("is installed", "pip install /mnt/data/greeting-1.0-py3-none-any.whl").says("Successfully installed greeting-1.0").never(NO_NETWORK),
            python("and imported by the kernel that runs", "import greeting\ngreeting.hello()").gives("'hello from a wheel'"),
            bash("and by every other Python", "cd /tmp && python3 -c 'import greeting, numpy; print(greeting.hello())'; pip list 2>/dev/null | grep -c greeting").says("hello from a wheel\n1"),
            bash("and removed again", "pip uninstall -y greeting").says("Successfully uninstalled greeting-1.0"),
        ],
    }
}
