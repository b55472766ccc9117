// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"strings"
)

// Annotations of the runtime's specification (config.json) that have names.
const (
	criNamespace  = "io.kubernetes.cri.sandbox-namespace" // containerd
	criPod        = "io.kubernetes.cri.sandbox-name"
	criContainer  = "io.kubernetes.cri.container-name"
	kubeNamespace = "io.kubernetes.pod.namespace" // CRI-O
	kubePod       = "io.kubernetes.pod.name"
	kubeContainer = "io.kubernetes.container.name"
	nerdctlName   = "nerdctl/name"
)

// sandboxName is the name that CRI-O and cri-dockerd give the container that holds the
// namespaces of a pod.
const sandboxName = "POD"

// readSpec reads the names from the annotations of a config.json of the Open Container
// Initiative, which containerd and CRI-O write.
func readSpec(file io.Reader, _ string) (Names, error) {
	found, err := readDocument(file, fields{"annotations": {
		criNamespace: nil, criPod: nil, criContainer: nil, kubeNamespace: nil, kubePod: nil, kubeContainer: nil, nerdctlName: nil,
	}})
	if err != nil {
		return Names{}, err
	}
	return kubernetes(
		cmp.Or(found[criNamespace], found[kubeNamespace]), cmp.Or(found[criPod], found[kubePod]),
		cmp.Or(found[criContainer], found[kubeContainer], found[nerdctlName])), nil
}

// readDocker reads the name from a config.v2.json of Docker.
func readDocker(file io.Reader, _ string) (Names, error) {
	found, err := readDocument(file, fields{"Name": nil})
	return joined(strings.TrimPrefix(found["Name"], "/")), err
}

// readStorage reads the name of one container from the list of all that Podman and CRI-O
// keep, a containers.json of containers/storage.
func readStorage(file io.Reader, id string) (Names, error) {
	d := json.NewDecoder(file)
	if err := expect(d, '['); err != nil {
		return Names{}, err
	}
	for d.More() {
		found := make(map[string]string)
		if err := (fields{"id": nil, "names": nil}).read(d, found, false); err != nil {
			return Names{}, err
		}
		if found["id"] == id {
			return joined(found["names"]), nil
		}
	}
	return Names{}, expect(d, ']')
}

// joined returns the names in the one name of a container. cri-dockerd and CRI-O call it
// k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT, where no part has an underscore. The labels of
// Docker also have these names, but an image can have labels, too.
func joined(name string) Names {
	if parts := strings.Split(name, "_"); len(parts) >= 6 && parts[0] == "k8s" {
		return kubernetes(parts[3], parts[2], parts[1])
	}
	return Names{Container: name}
}

// kubernetes returns names without those that say nothing.
func kubernetes(namespace, pod, container string) Names {
	if namespace == "" || pod == "" {
		namespace, pod = "", ""
	}
	if container == sandboxName {
		container = ""
	}
	return Names{namespace, pod, container}
}

const (
	// maxName is the length of the longest name, in bytes. Those of Kubernetes have at
	// most 253.
	maxName = 256
	// maxDepth is how deep objects and arrays may be in others.
	maxDepth = 64
)

var errForm = errors.New("it has another form than a state file")

// fields are the members of a JSON object that are read: a text if there is nil, else an
// object with fields. All others are skipped.
type fields map[string]fields

// readDocument returns the texts in the first object of a file, by the names of their fields. It
// reads no further than to the last of the fields of f.
func readDocument(file io.Reader, f fields) (map[string]string, error) {
	found := make(map[string]string)
	return found, f.read(json.NewDecoder(file), found, true)
}

// read adds the texts of an object to found. If stop is set, it stops after the last field
// of f.
func (f fields) read(d *json.Decoder, found map[string]string, stop bool) error {
	if err := expect(d, '{'); err != nil {
		return err
	}
	left := len(f)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string) // what is in the place of a name is one
		within, wanted := f[name]
		switch {
		case !wanted:
			err = skip(d)
		case within != nil:
			err = within.read(d, found, false)
		default:
			err = readText(d, name, found)
		}
		if err != nil {
			return err
		}
		if wanted {
			if left--; left == 0 && stop {
				return nil
			}
		}
	}
	return expect(d, '}')
}

// expect reads a token, which has to be this delimiter.
func expect(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err == nil && t != want {
		err = errForm
	}
	return err
}

// readText adds a text to found, or the first one of an array of texts. It leaves out what
// is too long for a name.
func readText(d *json.Decoder, name string, found map[string]string) error {
	t, err := d.Token()
	if t == json.Delim('[') && d.More() {
		if t, err = d.Token(); err == nil {
			err = skipRest(d, t, 1)
		}
	} else if err == nil {
		err = skipRest(d, t, 0)
	}
	if text, ok := t.(string); ok && err == nil && len(text) <= maxName {
		found[name] = strings.Clone(text)
	}
	return err
}

// skip skips a value.
func skip(d *json.Decoder) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	return skipRest(d, t, 0)
}

// skipRest skips what follows the token t, up to the end of the value that began so many
// levels above t.
func skipRest(d *json.Decoder, t json.Token, depth int) (err error) {
	for {
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
		if depth > maxDepth {
			return errForm
		}
		if t, err = d.Token(); err != nil {
			return err
		}
	}
}
