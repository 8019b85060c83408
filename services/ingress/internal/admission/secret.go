package admission

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"podwire.dev/internal/errs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Types of Secrets that have rules of their own, and the keys that they ask for. Every other type is anybody's.
const (
	SecretOpaque = "Opaque"
	SecretTLS    = "kubernetes.io/tls"

	secretAccountToken = "kubernetes.io/service-account-token"
	secretDockercfg    = "kubernetes.io/dockercfg"
	secretDockerconfig = "kubernetes.io/dockerconfigjson"
	secretBasicAuth    = "kubernetes.io/basic-auth"
	secretSSHAuth      = "kubernetes.io/ssh-auth"

	// KeyCertificate and KeyPrivate are the keys of a Secret of type SecretTLS.
	KeyCertificate = "tls.crt"
	KeyPrivate     = "tls.key"

	annotationAccount = "kubernetes.io/service-account.name"
	keyDockercfg      = ".dockercfg"
	keyDockerconfig   = ".dockerconfigjson"
	keyUsername       = "username"
	keyPassword       = "password"
	keySSH            = "ssh-privatekey"
)

const (
	// maxSecret bounds the values of a Secret together, in bytes.
	maxSecret = 1 << 20
	// maxSecretKey bounds a key, in bytes.
	maxSecretKey = 253
)

// redacted stands for a value that nobody is shown.
const redacted = "<secret contents redacted>"

// CarrySecret keeps the type, which cannot change, where it is left out.
func CarrySecret(o, old *objectv1.Secret) {
	if old != nil && o.Type == "" {
		o.Type = old.GetType()
	}
}

// DefaultSecret fills in the type and puts stringData into data, over what data has under the same key.
func DefaultSecret(o, _ *objectv1.Secret) {
	if o.Type == "" {
		o.Type = SecretOpaque
	}
	if len(o.StringData) > 0 && o.Data == nil {
		o.Data = make(map[string][]byte, len(o.StringData))
	}
	for key, value := range o.StringData {
		o.Data[key] = []byte(value)
	}
	o.StringData = nil
}

// ValidateSecret returns the rules that a Secret breaks. old is nil when it is being created.
func ValidateSecret(o, old *objectv1.Secret) []errs.Violation {
	var v violations
	if old != nil {
		v.secretUpdate(o, old)
	}
	total := 0
	for _, key := range slices.Sorted(maps.Keys(o.GetData())) {
		v.secretKey(key)
		total += len(o.GetData()[key])
	}
	if total > maxSecret {
		v.add("data", "", "Too long: may not be more than %d bytes in all; it is %d", maxSecret, total)
	}
	v.secretType(o)
	return v
}

func (v *violations) secretUpdate(o, old *objectv1.Secret) {
	if o.GetType() != old.GetType() {
		v.add("type", o.GetType(), ruleImmutable)
	}
	if !old.GetImmutable() {
		return
	}
	if !o.GetImmutable() {
		v.add("immutable", "", "Forbidden: field is immutable when `immutable` is set")
	}
	if !maps.EqualFunc(o.GetData(), old.GetData(), slices.Equal[[]byte]) {
		v.add("data", "", "Forbidden: field is immutable when `immutable` is set")
	}
}

// secretKey is the rule for the keys of a Secret.
func (v *violations) secretKey(key string) {
	at := "data[" + key + "]"
	switch {
	case len(key) > maxSecretKey:
		v.add("data", key[:32]+"…", "must be no more than %d characters", maxSecretKey)
	case key == "" || strings.ContainsFunc(key, func(c rune) bool { return !inKey(c) }):
		v.add(at, key, "a valid config key must consist of alphanumeric characters, '-', '_' or '.'")
	case key == ".":
		v.add(at, key, "must not be '.'")
	case key == "..":
		v.add(at, key, "must not be '..'")
	case strings.HasPrefix(key, ".."):
		v.add(at, key, "must not start with '..'")
	}
}

func inKey(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
}

// secretType are the rules of the types. As in Kubernetes, a pair of certificate and key is not looked at: whether it can
// be served is the route table's to say.
func (v *violations) secretType(o *objectv1.Secret) {
	data := o.GetData()
	required := func(key string) bool {
		if _, ok := data[key]; ok {
			return true
		}
		v.add("data["+key+"]", "", "is required")
		return false
	}
	object := func(key string) {
		if required(key) && json.Unmarshal(data[key], &map[string]any{}) != nil {
			// The decoder's own words quote what it reads.
			v.add("data["+key+"]", redacted, "must be a JSON object")
		}
	}
	switch o.GetType() {
	case secretAccountToken:
		if o.GetMetadata().GetAnnotations()[annotationAccount] == "" {
			v.add("metadata.annotations["+annotationAccount+"]", "", "is required")
		}
	case secretDockercfg:
		object(keyDockercfg)
	case secretDockerconfig:
		object(keyDockerconfig)
	case secretBasicAuth:
		_, username := data[keyUsername]
		_, password := data[keyPassword]
		if !username && !password {
			required(keyUsername)
			required(keyPassword)
		}
	case secretSSHAuth:
		if len(data[keySSH]) == 0 {
			v.add("data["+keySSH+"]", "", "is required")
		}
	case SecretTLS:
		required(KeyCertificate)
		required(KeyPrivate)
	}
}
