// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"os"
	"path/filepath"

	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v2"
)

// WebFiles returns the absolute paths of the web config file and of the files that it
// names. They are read again with each request and each TLS handshake, so that a new
// certificate needs no restart. It returns none if there is no web config file.
func WebFiles(flags *web.FlagConfig) ([]string, error) {
	if flags.WebConfigFile == nil || *flags.WebConfigFile == "" {
		return nil, nil
	}
	path, err := filepath.Abs(*flags.WebConfigFile)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var config web.Config
	if err := yaml.UnmarshalStrict(text, &config); err != nil {
		return nil, err
	}
	config.TLSConfig.SetDirectory(filepath.Dir(path))
	files := []string{path}
	for _, f := range []string{config.TLSConfig.TLSCertPath, config.TLSConfig.TLSKeyPath, config.TLSConfig.ClientCAs} {
		if f != "" {
			files = append(files, f)
		}
	}
	return files, nil
}
