// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/exporter-toolkit/web"
	"go.uber.org/goleak"
)

func flagsFor(config string, addresses ...string) *web.FlagConfig {
	return &web.FlagConfig{WebListenAddresses: &addresses, WebSystemdSocket: new(false), WebConfigFile: &config}
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// start serves on two free ports until stop is called.
func start(t *testing.T, h http.Handler, config string) (urls [2]string, stop func() error) {
	t.Helper()
	listeners, err := Listen(flagsFor(config, "127.0.0.1:0", "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range listeners {
		urls[i] = "http://" + l.Addr().String()
	}
	ctx, cancel := context.WithCancel(t.Context())
	logger := slog.New(slog.DiscardHandler)
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, listeners, h, flagsFor(config), newConnLimit(maxConns, logger), logger) }()
	return urls, func() error {
		cancel()
		return <-done
	}
}

func get(t *testing.T, url, user, password string) (status int, header http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		r.SetBasicAuth(user, password)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header
}

func TestServerStopsWithoutALeak(t *testing.T) {
	defer goleak.VerifyNone(t)
	urls, stop := start(t, newHandler(t, &fakeSource{}), "")
	for _, url := range urls {
		if status, _ := get(t, url+"/-/healthy", "", ""); status != http.StatusOK {
			t.Errorf("%s: status %d", url, status)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	for _, url := range urls {
		l, err := net.Listen("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Errorf("the port is still taken: %v", err)
			continue
		}
		l.Close()
	}
}

func TestRequestUnderWayIsFinishedAtShutdown(t *testing.T) {
	defer goleak.VerifyNone(t)
	entered, release := make(chan struct{}), make(chan struct{})
	urls, stop := start(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		w.WriteHeader(http.StatusTeapot)
	}), "")
	stopped := make(chan error, 1)
	go func() {
		<-entered
		go func() { stopped <- stop() }()
		for { // until nothing listens any more, so the shutdown is under way
			c, err := net.Dial("tcp", strings.TrimPrefix(urls[0], "http://"))
			if err != nil {
				break
			}
			c.Close()
		}
		close(release)
	}()
	if status, _ := get(t, urls[0], "", ""); status != http.StatusTeapot {
		t.Errorf("status %d", status)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestServeEndsWithAContextThatIsOverAlready(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	flags := flagsFor("", "127.0.0.1:0")
	flags.WebConfigFile = nil
	listeners, err := Listen(flags)
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	if err := Serve(ctx, listeners, http.NotFoundHandler(), flags, newConnLimit(maxConns, logger), logger); err != nil {
		t.Error(err)
	}
}

func TestWebConfigIsAppliedToEveryListener(t *testing.T) {
	defer goleak.VerifyNone(t)
	// The password is "secret", at bcrypt's lowest cost.
	config := writeConfig(t, `
basic_auth_users:
  prometheus: $2a$04$y927JXmOaBp0qsUa5VQsAO9OGZySGiPt6Spxe5Z44eQyidQ6xtiPO
http_server_config:
  headers:
    X-Frame-Options: deny
`)
	urls, stop := start(t, newHandler(t, &fakeSource{}), config)
	for _, url := range urls {
		for _, path := range []string{"/", "/metrics", "/api/v1/connections", "/-/healthy"} {
			if status, _ := get(t, url+path, "", ""); status != http.StatusUnauthorized {
				t.Errorf("%s without a password: status %d", path, status)
			}
			status, header := get(t, url+path, "prometheus", "secret")
			if status != http.StatusOK || header.Get("X-Frame-Options") != "deny" {
				t.Errorf("%s with the password: status %d, header %v", path, status, header)
			}
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestServeSaysWhatIsWrongAtOnce(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	missing := filepath.Join(t.TempDir(), "none.yml")
	noAddress := flagsFor("")
	noAddress.WebListenAddresses = nil
	systemd := flagsFor("")
	systemd.WebSystemdSocket = new(true)
	for name, tc := range map[string]struct {
		flags *web.FlagConfig
		want  []string // parts of the error
	}{
		"a port that is taken": {
			flagsFor("", address),
			[]string{"listen on " + address + ": address already in use: stop what listens there or choose another with --web.listen-address"},
		},
		"the second of two ports is taken": {
			flagsFor("", "127.0.0.1:0", address), []string{"listen on " + address + ": address already in use"},
		},
		"an address of another machine": {
			flagsFor("", "192.0.2.1:0"), []string{"listen on 192.0.2.1:0:", "cannot assign requested address", "--web.listen-address"},
		},
		"an address without a port": {
			flagsFor("", "127.0.0.1"), []string{`--web.listen-address: "127.0.0.1" is not an address and a port, such as :9839`},
		},
		"an empty address, which would be any port": {
			flagsFor("", "127.0.0.1:0", ""), []string{`"" is not an address and a port`},
		},
		"an address with an empty port, which would be any": {
			flagsFor("", "127.0.0.1:"), []string{`"127.0.0.1:" is not an address and a port`},
		},
		"a port that is none": {
			flagsFor("", "127.0.0.1:99999"), []string{`"127.0.0.1:99999" is not an address and a port`},
		},
		"no address":                  {flagsFor(""), []string{"--web.listen-address"}},
		"no addresses at all":         {noAddress, []string{"--web.listen-address"}},
		"systemd that passed nothing": {systemd, []string{"systemd passed no socket", "--web.systemd-socket"}},
		"a web config that is not there": {
			flagsFor(missing, "127.0.0.1:0"), []string{"web config " + missing, "no such file", "--web.config.file"},
		},
		"a web config with an unknown key": {
			flagsFor(writeConfig(t, "tls_sever_config: {}\nbasic_auth: {}\n"), "127.0.0.1:0"),
			[]string{"tls_sever_config", "basic_auth", "--web.config.file"},
		},
		"a web config without the key's file": {
			flagsFor(writeConfig(t, "tls_server_config:\n  cert_file: none.pem\n"), "127.0.0.1:0"),
			[]string{"web config", "key", "--web.config.file"},
		},
		"a web config with a password in the clear": {
			flagsFor(writeConfig(t, "basic_auth_users:\n  prometheus: secret\n"), "127.0.0.1:0"),
			[]string{"bcrypt", "--web.config.file"},
		},
		"a broken web config is told before a taken port": {
			flagsFor(missing, address), []string{"web config"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			_, err := Listen(tc.flags)
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
		})
	}
	if _, err := Listen(flagsFor("", address)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v is not EADDRINUSE", err)
	}
}

func TestOneTakenPortFreesTheOthers(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	if _, err := Listen(flagsFor("", free.Addr().String(), taken.Addr().String())); err == nil {
		t.Fatal("no error")
	}
	again, err := net.Listen("tcp", free.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// A config that breaks after it was validated.
func TestOneServerThatFailsEndsAll(t *testing.T) {
	defer goleak.VerifyNone(t)
	config := filepath.Join(t.TempDir(), "none.yml")
	listeners, err := Listen(flagsFor("", "127.0.0.1:0", "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	err = Serve(t.Context(), listeners, http.NotFoundHandler(), flagsFor(config), newConnLimit(maxConns, logger), logger)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
	for _, l := range listeners {
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s still listens: %v", l.Addr(), err)
		}
	}
}
