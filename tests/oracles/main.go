// Oracle verifies a ledger with the field's own Go code: golang.org/x/mod/sumdb and filippo.io/torchwood.
//
//	oracle judge < QUESTIONS   answers for notes, inclusion and consistency proofs: a JSON list of true and false
//	oracle monitor URL KEY [WITNESS_KEY ...]   reads a whole log from its tiles and prints a digest of its entries
//	oracle log WITNESS_URL SECRET_KEY WITNESS_KEY   a log that grows and has each tree cosigned
package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "judge":
		return judge()
	case len(args) >= 3 && args[0] == "monitor":
		return monitor(args[1], args[2], args[3:])
	case len(args) == 4 && args[0] == "log":
		return grow(args[1], args[2], args[3])
	}
	return errors.New("usage: oracle judge | monitor URL KEY [WITNESS_KEY ...] | log WITNESS_URL SECRET_KEY WITNESS_KEY")
}

type question struct {
	Kind      string   `json:"kind"`
	Note      string   `json:"note"`
	Keys      []string `json:"keys"`
	Witnesses []string `json:"witnesses"`
	Path      [][]byte `json:"path"`
	Size      int64    `json:"size"`
	Root      []byte   `json:"root"`
	Index     int64    `json:"index"`
	Body      []byte   `json:"body"`
	Older     int64    `json:"older"`
	OlderRoot []byte   `json:"older_root"`
}

func judge() error {
	var questions []question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		return err
	}
	answers := make([]bool, len(questions))
	for i, q := range questions {
		err := holds(q)
		answers[i] = err == nil
		if err != nil {
			fmt.Fprintf(os.Stderr, "question %d: %v\n", i, err)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

func holds(q question) error {
	path := make([]tlog.Hash, len(q.Path))
	for i, hash := range q.Path {
		copy(path[i][:], hash)
	}
	switch q.Kind {
	case "note":
		_, err := open([]byte(q.Note), q.Keys, q.Witnesses)
		return err
	case "inclusion":
		return tlog.CheckRecord(path, q.Size, hash(q.Root), q.Index, tlog.RecordHash(q.Body))
	case "consistency":
		return tlog.CheckTree(path, q.Size, hash(q.Root), q.Older, hash(q.OlderRoot))
	}
	return fmt.Errorf("unknown question %q", q.Kind)
}

func hash(raw []byte) (h tlog.Hash) {
	copy(h[:], raw)
	return h
}

// open requires a signature of every key and every witness.
func open(raw []byte, keys, witnesses []string) (torchwood.Checkpoint, error) {
	var verifiers []note.Verifier
	for _, key := range keys {
		verifier, err := note.NewVerifier(key)
		if err != nil {
			return torchwood.Checkpoint{}, err
		}
		verifiers = append(verifiers, verifier)
	}
	for _, key := range witnesses {
		verifier, err := cosignatureVerifier(key)
		if err != nil {
			return torchwood.Checkpoint{}, err
		}
		verifiers = append(verifiers, verifier)
	}
	opened, err := note.Open(raw, note.VerifierList(verifiers...))
	if err != nil {
		return torchwood.Checkpoint{}, err
	}
	if len(opened.Sigs) != len(verifiers) {
		return torchwood.Checkpoint{}, fmt.Errorf("%d of %d have signed", len(opened.Sigs), len(verifiers))
	}
	return torchwood.ParseCheckpoint(opened.Text)
}

// public is a key that signs nothing: this version of torchwood makes verifiers of signers alone.
type public ed25519.PublicKey

func (p public) Public() crypto.PublicKey { return ed25519.PublicKey(p) }

func (p public) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("a public key signs nothing")
}

func cosignatureVerifier(key string) (note.Verifier, error) {
	parts := strings.SplitN(key, "+", 3)
	if len(parts) != 3 {
		return nil, fmt.Errorf("%q is no key", key)
	}
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(raw) != 1+ed25519.PublicKeySize {
		return nil, fmt.Errorf("%q is no key: %v", key, err)
	}
	signer, err := torchwood.NewCosignatureSigner(parts[0], public(raw[1:]))
	if err != nil {
		return nil, err
	}
	if got := signer.Verifier().String(); got != key {
		return nil, fmt.Errorf("%q is written %q", key, got)
	}
	return signer.Verifier(), nil
}

func monitor(url, key string, witnesses []string) error {
	query := ""
	if len(witnesses) > 0 {
		query = "?cosigned=1"
	}
	response, err := http.Get(url + "/checkpoint" + query)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	head, err := open(raw, []string{key}, witnesses)
	if err != nil {
		return err
	}
	fetcher, err := torchwood.NewTileFetcher(url)
	if err != nil {
		return err
	}
	client, err := torchwood.NewClient(fetcher)
	if err != nil {
		return err
	}
	digest, count := sha256.New(), int64(0)
	// It leaves a partial bundle for later, and reads it when asked again.
	for before := int64(-1); before != count && count != head.N; {
		before = count
		for index, entry := range client.Entries(context.Background(), head.Tree, count) {
			if index != count {
				return fmt.Errorf("entry %d came for entry %d", index, count)
			}
			digest.Write(entry)
			count++
		}
		if err := client.Err(); err != nil {
			return err
		}
	}
	if count != head.N {
		return fmt.Errorf("%d of %d entries came", count, head.N)
	}
	_, _, err = client.Entry(context.Background(), head.Tree, head.N/2)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"origin": head.Origin, "size": head.N, "sha256": fmt.Sprintf("%x", digest.Sum(nil)),
	})
}

// grow has trees of rising sizes cosigned, and requires each refusal that the protocol names.
func grow(url, secret, witness string) error {
	signer, err := note.NewSigner(secret)
	if err != nil {
		return err
	}
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			found[i] = hashes[index]
		}
		return found, nil
	})
	size := int64(0)
	for _, next := range []int64{1, 2, 3, 7, 8, 100, 100, 257} {
		for size < next {
			stored, err := tlog.StoredHashes(size, []byte(fmt.Sprintf("record %d", size)), reader)
			if err != nil {
				return err
			}
			hashes = append(hashes, stored...)
			size++
		}
		if err := cosigned(url, signer, witness, reader, next); err != nil {
			return fmt.Errorf("size %d: %w", next, err)
		}
	}
	fmt.Println("cosigned")
	return nil
}

var last int64

func cosigned(url string, signer note.Signer, witness string, reader tlog.HashReader, size int64) error {
	root, err := tlog.TreeHash(size, reader)
	if err != nil {
		return err
	}
	head := torchwood.Checkpoint{Origin: signer.Name(), Tree: tlog.Tree{N: size, Hash: root}}
	signed, err := note.Sign(&note.Note{Text: head.String()}, signer)
	if err != nil {
		return err
	}
	if last > 0 {
		status, kind, body, err := post(url, 0, nil, signed)
		if err != nil {
			return err
		}
		if status != 409 || kind != "text/x.tlog.size" || body != fmt.Sprintf("%d\n", last) {
			return fmt.Errorf("an old size of 0 is answered %d %s %q", status, kind, body)
		}
	}
	var proof tlog.TreeProof
	if last > 0 && last < size {
		if proof, err = tlog.ProveTree(size, last, reader); err != nil {
			return err
		}
		wrong := append(tlog.TreeProof{}, proof...)
		if len(wrong) > 0 {
			wrong[0][0] ^= 1
		} else {
			wrong = tlog.TreeProof{root}
		}
		if status, _, body, err := post(url, last, wrong, signed); err != nil || status != 422 {
			return fmt.Errorf("a wrong proof is answered %d %q %v", status, body, err)
		}
	}
	status, _, body, err := post(url, last, proof, signed)
	if err != nil {
		return err
	}
	if status != 200 {
		return fmt.Errorf("answered %d %q", status, body)
	}
	last = size
	verifier, err := cosignatureVerifier(witness)
	if err != nil {
		return err
	}
	opened, err := note.Open(append(signed, body...), note.VerifierList(verifier))
	if err != nil {
		return err
	}
	_, err = torchwood.CosignatureTimestamp(opened.Sigs[0])
	return err
}

func post(url string, old int64, proof tlog.TreeProof, signed []byte) (int, string, string, error) {
	var body strings.Builder
	fmt.Fprintf(&body, "old %d\n", old)
	for _, hash := range proof {
		body.WriteString(base64.StdEncoding.EncodeToString(hash[:]) + "\n")
	}
	body.WriteString("\n")
	body.Write(signed)
	response, err := http.Post(url+"/add-checkpoint", "text/plain", bytes.NewReader([]byte(body.String())))
	if err != nil {
		return 0, "", "", err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	return response.StatusCode, response.Header.Get("Content-Type"), string(raw), err
}
