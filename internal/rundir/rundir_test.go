// SPDX-License-Identifier: Apache-2.0

package rundir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOpen(t *testing.T) {
	parent, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(parent, "made")
	for range 2 { // makes it, and opens it
		f, err := Open(dir, -1)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if info, err := os.Stat(dir); err != nil || info.Mode() != os.ModeDir|dirMode {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Symlink(dir, filepath.Join(parent, "link")); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(parent, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(parent, "link"):      "is a symbolic link, or no directory",
		filepath.Join(parent, "link", "x"): "is a symbolic link, or no directory",
		open:                               "can be written to by others",
		filepath.Join(open, "x"):           "can be written to by others",
		filepath.Join(parent, "a", "b"):    "no such file or directory",
	} {
		if f, err := Open(path, -1); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, %v", path, f, err)
		}
	}
}
