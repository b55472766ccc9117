// SPDX-License-Identifier: Apache-2.0

package ask

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// option is an option of a socket that asking changes.
type option int

const (
	keepalive option = iota
	idle
	interval
	count
	userTimeout
	options
)

// names has setsockopt's level and name of each option.
var names = [options]struct {
	level, name int
	text        string
}{
	keepalive:   {unix.SOL_SOCKET, unix.SO_KEEPALIVE, "SO_KEEPALIVE"},
	idle:        {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, "TCP_KEEPIDLE"},
	interval:    {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, "TCP_KEEPINTVL"},
	count:       {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, "TCP_KEEPCNT"},
	userTimeout: {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT"},
}

// The largest values that setsockopt takes (MAX_TCP_KEEPIDLE and so on in include/net/tcp.h).
const (
	maxIdle     = 32767
	maxInterval = 32767
	maxCount    = 127
)

// now is the TCP_KEEPIDLE that makes the kernel send a probe at once. It is the least.
const now = 1

// Settings are the values of the options, as getsockopt returns them.
type Settings struct {
	Keepalive   int `json:"keepalive"`
	Idle        int `json:"idle"`         // seconds
	Interval    int `json:"interval"`     // seconds
	Count       int `json:"count"`        // probes
	UserTimeout int `json:"user_timeout"` // milliseconds
}

func (s *Settings) of(o option) *int {
	return [options]*int{&s.Keepalive, &s.Idle, &s.Interval, &s.Count, &s.UserTimeout}[o]
}

// readSettings reads the options of a socket. It does not take the socket's lock.
func readSettings(fd int) (s Settings, err error) {
	for o := range options {
		if *s.of(o), err = get(fd, o); err != nil {
			return s, err
		}
	}
	return s, nil
}

func get(fd int, o option) (int, error) {
	v, err := unix.GetsockoptInt(fd, names[o].level, names[o].name)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", names[o].text, err)
	}
	return v, nil
}

func set(fd int, o option, v int) error {
	if err := unix.SetsockoptInt(fd, names[o].level, names[o].name, v); err != nil {
		return fmt.Errorf("set %s to %d: %w", names[o].text, v, err)
	}
	return nil
}

// cannotPutBack returns why the settings could not be put back, "" if they can. A sysctl may have
// values that setsockopt refuses.
func (s *Settings) cannotPutBack() string {
	for _, bound := range []struct {
		option
		most   int
		sysctl string
	}{
		{idle, maxIdle, "tcp_keepalive_time"}, {interval, maxInterval, "tcp_keepalive_intvl"}, {count, maxCount, "tcp_keepalive_probes"},
	} {
		if v := *s.of(bound.option); v < 1 || v > bound.most {
			return fmt.Sprintf("its %s is %d, from the sysctl net.ipv4.%s: a socket's own value can only be from 1 to %d, so it could not be put back",
				names[bound.option].text, v, bound.sysctl, bound.most)
		}
	}
	return ""
}

// step sets an option to a value.
type step struct {
	option
	value int
}

// changes returns the steps that make the kernel send one probe. doc.go has the reasons for the
// order.
func (s *Settings) changes() []step {
	var steps []step
	if s.UserTimeout != 0 {
		steps = append(steps, step{userTimeout, 0})
	}
	steps = append(steps, step{count, maxCount}, step{interval, maxInterval})
	if s.Keepalive == 0 {
		steps = append(steps, step{idle, maxIdle}, step{keepalive, 1})
	}
	return append(steps, step{idle, now})
}

// restoration returns the steps that undo changes, wherever these were interrupted. The timer
// must not fire while some settings are ours and others are not: keepalive goes off first or,
// where it was on, a long TCP_KEEPIDLE puts the timer off.
func (s *Settings) restoration() []step {
	first := step{keepalive, 0}
	if s.Keepalive != 0 {
		first = step{idle, maxIdle}
	}
	steps := []step{first, {interval, s.Interval}, {count, s.Count}, {userTimeout, s.UserTimeout}}
	return append(steps, step{idle, s.Idle})
}

// ours reports whether changes or restoration may have given an option this value.
func (s *Settings) ours(o option, v int) bool {
	switch o {
	case keepalive:
		return s.Keepalive == 0 && v == 1
	case idle:
		return v == now || v == maxIdle
	case interval:
		return v == maxInterval
	case count:
		return v == maxCount
	}
	return s.UserTimeout != 0 && v == 0
}

// change makes the kernel send one probe. The settings of the socket are s.
func (s *Settings) change(fd int) error {
	for _, c := range s.changes() {
		if err := set(fd, c.option, c.value); err != nil {
			return err
		}
	}
	return nil
}

// restore puts the settings s back. It leaves an option alone that no longer has a value that
// change gives, because the application has set it meanwhile.
func (s *Settings) restore(fd int) error {
	var errs []error
	for _, c := range s.restoration() {
		v, err := get(fd, c.option)
		theirs := c.option == keepalive && s.timed(fd)
		if err == nil && v != c.value && s.ours(c.option, v) && !theirs {
			err = set(fd, c.option, c.value)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// timed reports whether the application has set an option that says when keepalive asks, since
// the settings were s. Then it has most likely turned keepalive on, which changes nothing while
// it is on.
func (s *Settings) timed(fd int) bool {
	for _, o := range []option{idle, interval, count} {
		if v, err := get(fd, o); err == nil && v != *s.of(o) && !s.ours(o, v) {
			return true
		}
	}
	return false
}
