package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"podwire.dev/internal/errs"
)

// Uses says how often a token may enrol.
type Uses string

const (
	// Once is a node's token: the machine that enrols first is the node.
	Once Uses = "once"
	// Many is a service's token: every replica enrols with it, until it is revoked.
	Many Uses = "many"
)

// TokenRecord is what is stored of a join token; the secret is not in it.
type TokenRecord struct {
	// ID is the middle part of the token: public, for lists and logs.
	ID string `json:"id"`
	// SecretSHA256 is the SHA-256 of the secret's text, in hex. The secret has 256
	// random bits, so a slow hash would add nothing.
	SecretSHA256 string `json:"secretSHA256"`
	// Kind and Name are the identity that the token buys, and the only one.
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
	Uses Uses   `json:"uses"`
	// Revoked tokens enrol nobody.
	Revoked bool `json:"revoked"`
	// Expires is when the token stops working; nil is never.
	Expires *time.Time `json:"expires,omitempty"`
}

// Identity is who the token's bearer becomes.
func (r TokenRecord) Identity() Identity { return Identity{r.Kind, r.Name} }

const (
	tokenPrefix = "pw1"
	idBytes     = 6
	secretBytes = 32
)

// NewToken makes a token for id: its text, pw1.<id>.<secret>, to be handed over in
// secret, and the record to be stored. A node's token works once, a service's many
// times. A zero expires is never. Users get no token: their leaves are made by Init.
func NewToken(id Identity, expires time.Time) (token string, record TokenRecord, err error) {
	if err := id.Validate(); err != nil {
		return "", TokenRecord{}, errs.Wrap(err, "pki: join token")
	}
	uses := Many
	switch id.Kind {
	case KindNode:
		uses = Once
	case KindService:
	default:
		return "", TokenRecord{}, errs.New(errs.Invalid, "pki: join token for %s: only nodes and services enrol", id)
	}
	random := make([]byte, idBytes+secretBytes)
	if _, err := rand.Read(random); err != nil {
		return "", TokenRecord{}, errs.WrapAs(errs.Internal, err, "pki: join token")
	}
	tokenID := hex.EncodeToString(random[:idBytes])
	secret := base64.RawURLEncoding.EncodeToString(random[idBytes:])
	record = TokenRecord{ID: tokenID, SecretSHA256: hashSecret(secret), Kind: id.Kind, Name: id.Name, Uses: uses}
	if !expires.IsZero() {
		e := expires.UTC().Truncate(time.Second)
		record.Expires = &e
	}
	return tokenPrefix + "." + tokenID + "." + secret, record, nil
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// TokenID is the public part of a token's text; Invalid if it is no token. The error
// does not repeat the text, which may be a secret.
func TokenID(token string) (string, error) {
	id, _, err := splitToken(token)
	return id, err
}

func splitToken(token string) (id, secret string, err error) {
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 || parts[0] != tokenPrefix || len(parts[1]) != 2*idBytes ||
		len(parts[2]) != base64.RawURLEncoding.EncodedLen(secretBytes) {
		return "", "", errs.New(errs.Invalid, "join token: must be %s.<id>.<secret>, as `podwire pki init` wrote it", tokenPrefix)
	}
	return parts[1], parts[2], nil
}

// Redeem checks a token against the records and gives the record it belongs to. It
// does not count uses: the caller does, in one transaction with the signing of a
// Once token. Errors: Invalid if the text is no token; Denied if it is unknown,
// wrong, revoked or expired. An unknown id and a wrong secret read the same.
func Redeem(records []TokenRecord, token string, now time.Time) (TokenRecord, error) {
	id, secret, err := splitToken(token)
	if err != nil {
		return TokenRecord{}, err
	}
	for _, r := range records {
		if r.ID != id {
			continue
		}
		if subtle.ConstantTimeCompare([]byte(hashSecret(secret)), []byte(r.SecretSHA256)) != 1 {
			break
		}
		if r.Revoked {
			return TokenRecord{}, errs.New(errs.Denied, "join token %s for %s: was revoked", id, r.Identity())
		}
		if r.Expires != nil && !now.Before(*r.Expires) {
			return TokenRecord{}, errs.New(errs.Denied, "join token %s for %s: expired at %s", id, r.Identity(), r.Expires.Format(time.RFC3339))
		}
		return r, nil
	}
	return TokenRecord{}, errs.New(errs.Denied, "join token %s: is not known, or its secret is wrong", id)
}

// EncodeTokens is the content of tokens.json, ParseTokens reads it. The text is
// stable: equal records give equal bytes.
func EncodeTokens(records []TokenRecord) ([]byte, error) {
	b, err := json.MarshalIndent(struct {
		Tokens []TokenRecord `json:"tokens"`
	}{records}, "", "  ")
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "pki: encode token records")
	}
	return append(b, '\n'), nil
}

// ParseTokens reads and checks tokens.json; unknown keys and records that could not
// have been written by NewToken are Invalid, all of them at once.
func ParseTokens(data []byte) ([]TokenRecord, error) {
	var file struct {
		Tokens []TokenRecord `json:"tokens"`
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&file); err != nil {
		return nil, errs.WrapAs(errs.Invalid, err, "token records")
	}
	if dec.More() {
		return nil, errs.New(errs.Invalid, "token records: text after the end of the JSON object")
	}
	return file.Tokens, errs.InvalidFields("token records", checkRecords(file.Tokens))
}

func checkRecords(records []TokenRecord) []errs.Violation {
	var out []errs.Violation
	seen := make(map[string]struct{}, len(records))
	for i, r := range records {
		bad := func(field, value, rule string) {
			out = append(out, errs.Violation{Field: recordField(i, field), Value: value, Rule: rule})
		}
		if b, err := hex.DecodeString(r.ID); err != nil || len(b) != idBytes {
			bad("id", r.ID, "must be 12 hexadecimal digits")
		}
		if _, dup := seen[r.ID]; dup {
			bad("id", r.ID, "must be unique")
		}
		seen[r.ID] = struct{}{}
		if b, err := hex.DecodeString(r.SecretSHA256); err != nil || len(b) != sha256.Size {
			bad("secretSHA256", r.SecretSHA256, "must be 64 hexadecimal digits")
		}
		if err := r.Identity().Validate(); err != nil {
			bad("name", r.Identity().String(), err.Error())
		}
		if r.Uses != Once && r.Uses != Many {
			bad("uses", string(r.Uses), "must be once or many")
		}
	}
	return out
}

func recordField(i int, field string) string {
	return "tokens[" + strconv.Itoa(i) + "]." + field
}
