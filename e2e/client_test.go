// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certify writes a certificate and its key into dir, as NAME.pem and NAME.key, signed by
// the parent; without one it is a CA's.
func certify(t *testing.T, dir, name string, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		parent, by = template, key
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "EC PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestClientCertificateAndPasswordFile(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "ipv4")
	n.serve(servedPort, echo)
	conns := n.dial(servedPort, 1)
	n.greet(conns)
	dir := t.TempDir()
	ca, key := certify(t, dir, "ca", nil, nil)
	certify(t, dir, "server", ca, key)
	certify(t, dir, "client", ca, key)
	stranger, strangers := certify(t, dir, "stranger", nil, nil)
	certify(t, dir, "theirs", stranger, strangers)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// The password is "secret".
	web := write("web.yml", `
tls_server_config: {cert_file: server.pem, key_file: server.key, client_ca_file: ca.pem, client_auth_type: RequireAndVerifyClientCert}
basic_auth_users: {me: $2a$04$y927JXmOaBp0qsUa5VQsAO9OGZySGiPt6Spxe5Z44eQyidQ6xtiPO}
`)
	write("password", "secret\n")
	write("guess", "guess\n")
	a := launchAgent(t, "--web.config.file="+web)
	defer a.stop()
	url := strings.Replace(a.url, "http://", "https://", 1)
	config := func(name, cert, password string) string {
		text := "tls_config: {ca_file: ca.pem"
		if cert != "" {
			text += fmt.Sprintf(", cert_file: %s.pem, key_file: %s.key", cert, cert)
		}
		return write(name, text+"}\nbasic_auth: {username: me, password_file: "+password+"}\n")
	}
	right := config("right.yml", "client", "password")
	command := func(config string, args ...string) *exec.Cmd {
		args = append(args, "--url", url)
		if config != "" {
			args = append(args, "--web.client-config="+config)
		}
		return exec.Command(binary, args...)
	}
	eventually(t, "the agent answers who has the certificate and the password", func() error {
		if _, stderr, status := run(t, command(right, "list", "--limit=1")); status != 0 {
			return fmt.Errorf("exit status %d: %s", status, stderr)
		}
		return nil
	})
	local := conns[0].LocalAddr().String()
	if stdout, stderr, status := run(t, command(right, "explain", local)); status != 0 || !strings.Contains(stdout, local) {
		t.Errorf("explain: exit status %d: %s", status, stderr)
	}
	if _, stderr, status := run(t, command(right, "trace", "--duration=5s")); status != 0 || !strings.Contains(stderr, "watching through "+url) {
		t.Errorf("trace: exit status %d: %s", status, stderr)
	}
	for config, want := range map[string]string{
		config("without.yml", "", "password"):      "it wants a client certificate that it accepts (remote error: tls: ",
		config("theirs.yml", "theirs", "password"): "it wants a client certificate that it accepts (remote error: tls: ",
		config("guess.yml", "client", "guess"):     "it refused the user or password: check them in ",
		"":                                         "this machine does not trust the signer of its certificate: name its CA in ca_file",
	} {
		for _, args := range [][]string{{"list"}, {"explain", local}, {"trace", "--duration=1m"}} {
			stdout, stderr, status := run(t, command(config, args...))
			if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, want) {
				t.Errorf("%v with %s: exit status %d, stdout %q, stderr %q, expected %q", args, config, status, stdout, stderr, want)
			}
		}
	}
}
