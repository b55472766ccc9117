// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"maps"
	"net/netip"
	"testing"
	"time"
)

func TestTheLongestPrefixHasTheMiddleboxTimeout(t *testing.T) {
	m, err := ParseMiddleboxes("10.0.0.0/8=350s,10.1.0.0/16=aws-nlb,10.1.2.3=10s,default=azure-lb,2001:db8::/32=ipvs,2001:db8:1::/48=1m,::/0=2h,::ffff:10.9.0.0/112=7s")
	if err != nil {
		t.Fatal(err)
	}
	for remote, want := range map[string]time.Duration{
		"10.255.0.1": 350 * time.Second, "10.1.7.7": 350 * time.Second, "10.1.2.3": 10 * time.Second, "10.1.2.4": 350 * time.Second,
		"10.9.1.1": 7 * time.Second, "192.0.2.1": 240 * time.Second, "0.0.0.0": 240 * time.Second,
		"2001:db8::1": 900 * time.Second, "2001:db8:1::1": time.Minute, "fd00::1": 2 * time.Hour, "::1": 2 * time.Hour,
	} {
		if got := m.Timeout(netip.MustParseAddr(remote)); got != want {
			t.Errorf("%s: %v, want %v", remote, got, want)
		}
	}
	if least := m.Least(); least != 7*time.Second {
		t.Errorf("the least is %v", least)
	}
}

func TestMiddleboxesAreParsed(t *testing.T) {
	for text, want := range map[string]string{
		"4050ms":                                "4.05s",
		"aws-nlb":                               "5m50s",
		"azure-lb":                              "4m0s",
		"gcp":                                   "10m0s",
		"ipvs":                                  "15m0s",
		"default=gcp":                           "10m0s",
		"10.1.0.0/8=350s":                       "10.0.0.0/8=5m50s,default=5m50s",
		"default=240s,fd00::/8=1h,10.0.0.2=gcp": "10.0.0.2/32=10m0s,fd00::/8=1h0m0s,default=4m0s",
	} {
		m, err := ParseMiddleboxes(text)
		if err != nil || m.String() != want {
			t.Errorf("%s: %s, %v, want %s", text, &m, err, want)
			continue
		}
		again, err := ParseMiddleboxes(m.String())
		if err != nil || again.Default != m.Default || !maps.Equal(again.To, m.To) {
			t.Errorf("%s: parsed again it is %s, %v", &m, &again, err)
		}
	}
	const shape = ` is neither a time such as 350s, nor a preset (aws-nlb, azure-lb, gcp, ipvs), nor a list such as 10.0.0.0/8=350s,default=azure-lb`
	for text, want := range map[string]string{
		"":                            `""` + shape,
		"aws":                         `"aws"` + shape,
		"350":                         `"350"` + shape,
		"-1s":                         "-1s is not positive",
		"10.0.0.0/8":                  `"10.0.0.0/8"` + shape,
		"10.0.0.0/8=":                 `""` + shape,
		"10.0.0.0/8=0s":               "0s is not positive",
		"10.0.0.0/33=1s":              `"10.0.0.0/33" is neither an address such as 10.0.0.2 nor a prefix such as 10.0.0.0/8, nor default`,
		"host=1s":                     `"host" is neither an address such as 10.0.0.2 nor a prefix such as 10.0.0.0/8, nor default`,
		"10.0.0.0/8=1s,":              `"" has no destination: write PREFIX=TIMEOUT such as 10.0.0.0/8=350s, or default=TIMEOUT`,
		"10.0.0.0/8=1s,240s":          `"240s" has no destination: write PREFIX=TIMEOUT such as 10.0.0.0/8=350s, or default=TIMEOUT`,
		"10.0.0.0/8=1s,10.1.1.1/8=2s": "10.0.0.0/8 is given twice",
		"default=1s,default=2s":       "default is given twice",
	} {
		if _, err := ParseMiddleboxes(text); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
