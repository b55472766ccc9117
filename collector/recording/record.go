// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"unicode"

	"github.com/halfopen/halfopen/bpf/abi"
)

// record is an [abi.Conn] as a JSON object whose fields have their names in bpf/halfopen.h.
// Fields that are 0 are left out. A field that is missing in the file is 0, so that
// recordings of older versions can be read; an unknown field is an error.
type record abi.Conn

// fields are the names of a record's fields in their order; field has the index of each name.
var fields, field = func() (names []string, index map[string]int) {
	t := reflect.TypeFor[record]()
	names, index = make([]string, t.NumField()), make(map[string]int)
	for i := range names {
		if name := t.Field(i).Name; name != "_" && !strings.HasPrefix(name, "Pad") {
			names[i] = snake(name)
			index[names[i]] = i
		}
	}
	return names, index
}()

// snake returns the C name of a field that internal/abigen has given a Go name:
// keepalive_time of KeepaliveTime, and uid of UID.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 && !unicode.IsUpper(rune(name[i-1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// MarshalJSON implements [json.Marshaler].
func (r record) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 1024)
	v := reflect.ValueOf(&r).Elem()
	for i, name := range fields {
		if name == "" || v.Field(i).IsZero() {
			continue
		}
		b = append(b, ',', '"')
		b = append(b, name...)
		b = append(b, '"', ':')
		if f := v.Field(i); f.Kind() == reflect.Array {
			b = strconv.AppendQuote(b, addressOf(f.Interface().([16]uint8), r.Family).String())
		} else {
			b = strconv.AppendUint(b, f.Uint(), 10)
		}
	}
	if len(b) == 0 {
		return []byte("{}"), nil
	}
	b[0] = '{'
	return append(b, '}'), nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (r *record) UnmarshalJSON(data []byte) error {
	if bytes.Equal(data, []byte("null")) {
		return fmt.Errorf("a record is null")
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(data, &object); err != nil {
		return err
	}
	v := reflect.ValueOf(r).Elem()
	for name, raw := range object {
		i, ok := field[name]
		if !ok {
			return unknownFieldError(name)
		}
		f := v.Field(i)
		if f.Kind() == reflect.Array {
			var a netip.Addr
			if err := json.Unmarshal(raw, &a); err != nil || !a.IsValid() || a.Zone() != "" {
				return fmt.Errorf("%s is not an address: %.60s", name, raw)
			}
			f.Set(reflect.ValueOf(bytesOf(a)))
			continue
		}
		n, err := strconv.ParseUint(string(raw), 10, f.Type().Bits())
		if err != nil {
			return fmt.Errorf("%s is not a number of %d bits: %.60s", name, f.Type().Bits(), raw)
		}
		f.SetUint(n)
	}
	return nil
}

// unknownFieldError is the name of a field that this version does not know.
type unknownFieldError string

func (e unknownFieldError) Error() string {
	return fmt.Sprintf("the field %.60q is unknown", string(e))
}

const familyIPv4 = 2 // AF_INET

// addressOf returns the address in a record's bytes: an IPv4 address is the first 4 of them.
func addressOf(a [16]uint8, family uint16) netip.Addr {
	if family == familyIPv4 && [12]uint8(a[4:]) == [12]uint8{} {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(a)
}

// bytesOf returns the bytes of an address in a record. It is the reverse of addressOf.
func bytesOf(a netip.Addr) (b [16]uint8) {
	copy(b[:], a.AsSlice())
	return b
}
